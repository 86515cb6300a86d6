"""Models, inputs and casts in the precision of a comparison."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from prunegate.compaction.equivalence import Side
from prunegate.compaction.experts import BY_EXPERTS, in_double
from prunegate.groups import ExampleInputs, copy_with, in_place_of
from prunegate.groups.following.outputs import names_of_state, tensors_in
from prunegate.groups.torch_workarounds.kernels import exact_arithmetic
from prunegate.modes import eval_mode


class Narrows(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records whether anything is computed in less than double precision."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.has_narrowed = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype in _NARROW and result.dim() > 0:
            self.has_narrowed = True
        return result


_NARROW = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.complex64})


# The default dtype is process-wide, so comparisons in several threads take turns.
_one_at_a_time = threading.RLock()
_PRECISIONS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
_CASTS = frozenset({"double", "float", "half", "bfloat16"})


class Widely(TorchFunctionMode):
    """Redirects casts in the model's code to the precision of a comparison.

    Some code (normalisation layers of language models) always casts to float32; its rounding would hide the differences
    that the comparison looks for. If the layers of a model have several precisions, its code casts between them, while
    a comparison uses one precision for all weights. Tensors created in a forward pass get the comparison's precision
    too, whatever the user's default is.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self._default = torch.get_default_dtype()

    def __enter__(self) -> Widely:
        _one_at_a_time.acquire()
        super().__enter__()  # type: ignore[no-untyped-call]
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(self._dtype)
        return self

    def __exit__(self, *exception: Any) -> None:
        torch.set_default_dtype(self._default)
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        _one_at_a_time.release()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _CASTS:
            return args[0].to(self._dtype)
        if name in BY_EXPERTS and args[0].dtype is torch.float64:
            return in_double(*args, **kwargs)
        if any(_is_precision(a) for a in (*args, *kwargs.values())):
            args = tuple(self._dtype if _is_precision(a) else a for a in args)
            kwargs = {key: self._dtype if _is_precision(a) else a for key, a in kwargs.items()}
        return func(*args, **kwargs)


def _is_precision(argument: Any) -> bool:
    return isinstance(argument, torch.dtype) and argument in _PRECISIONS


@contextmanager
def evaluating(model: nn.Module, dtype: torch.dtype, not_weights: Iterable[torch.Tensor] = ()) -> Iterator[nn.Module]:
    """The model in eval mode and in ``dtype``: the model itself if it already is, otherwise a copy."""
    with eval_mode(model):
        yield model if _fits(model, dtype, not_weights) else _converted(model, dtype)


@contextmanager
def in_precision(side: Side, dtype: torch.dtype, not_weights: Iterable[torch.Tensor] = ()) -> Iterator[Side]:
    """The side with both its models in ``dtype``."""
    with eval_mode(side.model):
        yield side if _fits(side.model, dtype, not_weights) else side.converted(partial(_converted, dtype=dtype))


def _fits(model: nn.Module, dtype: torch.dtype, not_weights: Iterable[torch.Tensor]) -> bool:
    skipped = {id(tensor) for tensor in not_weights}
    tensors = [t for t in (*model.parameters(), *model.buffers()) if id(t) not in skipped]
    return all(t.dtype is dtype or not t.is_floating_point() for t in tensors) and not any(map(_lacks_double, tensors))


def _converted(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy_with(model, partial(converted, dtype=dtype, copy=True))


def _lacks_double(tensor: torch.Tensor) -> bool:
    """Whether a tensor is on a device without double precision; proofs are then made on the CPU."""
    return tensor.device.type == "mps"


def converted(tensor: torch.Tensor, dtype: torch.dtype, copy: bool = False) -> torch.Tensor:
    """A tensor in another precision if it is a floating one, on the CPU if its device lacks double precision."""
    device = torch.device("cpu") if _lacks_double(tensor) else tensor.device
    wanted = dtype if tensor.is_floating_point() else tensor.dtype
    return in_place_of(tensor, tensor.detach().to(device, wanted, copy=copy))


def outputs_of(model: nn.Module, inputs: ExampleInputs) -> list[torch.Tensor]:
    """All tensors that a model returns for these inputs, without gradients."""
    inputs = inputs.copied()
    with torch.no_grad(), exact_arithmetic(inputs.tensors()[0].device):
        outputs = model(*inputs.args, **inputs.kwargs)
    return tensors_in(outputs, names_of_state(model))


def random_like(inputs: ExampleInputs) -> ExampleInputs:
    """Normal noise in single precision for every floating tensor; integers (token ids, masks) are unchanged."""
    generator = torch.Generator().manual_seed(0)

    def drawn(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like.device)

    return inputs.map(lambda t: drawn(t) if t.is_floating_point() else t)
