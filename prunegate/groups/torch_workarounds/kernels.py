"""Disabling torch's fused kernels where their individual steps have to be traced or masked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


def has_fused_layers(model: nn.Module) -> bool:
    """Whether any layer of the model has a fused kernel for inference."""
    return any(isinstance(module, _FUSED) for module in model.modules())


class unfused_layers(TorchFunctionMode):  # noqa: N801 -- used as a context
    """Run torch's attention and encoder layers unfused, in this thread.

    Their fused inference kernels read the weights of several layers without calling these layers: masks do not reach a
    norm inside, and without data no shapes are checked. They are not used under any function mode.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def without_packing(model: nn.Module) -> None:
    """Turn off the packing of padded sequences in torch's encoders, in place.

    In inference they pack sequences for fused kernels, which leaves zeros at the padding. Unfused, as in training and
    while gated, an encoder leaves other values there. An attribute controls packing.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def without_misled_kernels(model: nn.Module) -> None:
    """Make torch's encoder layers run unfused, in place, if their attention has been changed.

    The fused inference kernel assumes that queries, keys and values are as wide as the input, and never calls the
    attention's own forward. An attribute of the layer says whether there is a kernel for its activation.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and not _is_as_torch_made_it(module.self_attn):
            module.activation_relu_or_gelu = 0


def _is_as_torch_made_it(attention: nn.Module) -> bool:
    if not isinstance(attention, nn.MultiheadAttention) or type(attention).forward is not nn.MultiheadAttention.forward:
        return False
    weight, width = attention.in_proj_weight, attention.embed_dim
    return weight is None or tuple(weight.shape) == (3 * width, width)


class _ForAll:
    """A change of torch's process-wide switches, made once for all threads inside the context.

    The last thread to leave restores them.
    """

    def __init__(self, change: Callable[[], AbstractContextManager[Any]]) -> None:
        self._change, self._lock, self._inside = change, threading.Lock(), 0
        self._stack = ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._inside == 0:
                self._stack.enter_context(self._change())
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._stack.close()


@contextmanager
def _without_fast_path() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


# Like `unfused_layers`, but without intercepting every call, for the many dry runs.
layers_by_parts = _ForAll(_without_fast_path)
_math_attention = _ForAll(lambda: sdpa_kernel(SDPBackend.MATH))  # one owner per switch, so that they do not interfere


@contextmanager
def decomposed_attention() -> Iterator[None]:
    """Attention as matrix products and softmax instead of one fused operation."""
    with layers_by_parts(), _math_attention():
        yield


@contextmanager
def _plain_float32() -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with cudnn.flags(cudnn.enabled, False, cudnn.benchmark_limit, cudnn.deterministic, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


_exact = _ForAll(_plain_float32)


def exact_arithmetic(device: torch.device) -> AbstractContextManager[None]:
    """Full float32 precision instead of the shorter formats of GPU matrix units, and no search for fast kernels.

    Compared results should only differ by rounding, and a search does not pay off for models that run once.
    """
    return _exact() if device.type == "cuda" else nullcontext()
