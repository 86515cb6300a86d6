"""Fused kernels of torch switched off, where what they compute at once has to be seen or masked by its parts."""

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
    """Run torch's attention and encoder layers by their parts, in this thread.

    Their fused kernels for inference read the weights of several layers at once and call none of them: no mask
    reaches a norm inside, and without data they check no shape. They are not used under a function mode, whichever.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def without_packing(model: nn.Module) -> None:
    """Have torch's encoders leave padded sequences as they are, in place.

    For inference they pack them for fused kernels, which leaves zeros where the padding was; run by its parts, as when
    it is trained and while it is gated, an encoder leaves other values there. Whether to pack is an attribute.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def without_misled_kernels(model: nn.Module) -> None:
    """Have torch's encoder layers run by their parts, in place, where their attention no longer is what torch made.

    The fused kernel for inference takes it for granted that queries, keys and values are as wide as the input, and
    never calls the attention's own forward. A layer asks an attribute whether there is a kernel for its activation.
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
    """A change of torch's switches, which are the whole process's: made once for all threads that are in here.

    The last one to leave puts everything back.
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


# What `unfused_layers` does, without a look at every call: for dry runs, which are many.
layers_by_parts = _ForAll(_without_fast_path)
_math_attention = _ForAll(lambda: sdpa_kernel(SDPBackend.MATH))  # each switch has one owner, or they cross


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
    """Float32 computed as such, not in the shorter formats of GPUs' matrix units, and no search for quick kernels.

    What is compared is to differ by rounding alone, and models that are run once are not worth a search.
    """
    return _exact() if device.type == "cuda" else nullcontext()
