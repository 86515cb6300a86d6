"""Running models and measuring how far apart two of them are, in double precision.

On purpose this shares no code with the library's own certificate.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

TOLERANCE = 1e-9
# Parts of a detector whose outputs are computed before anything is picked.
_PROBES = ("backbone", "head", "rpn.head", "roi_heads.box_predictor")
_PROPOSALS = "rpn"

Recorded = dict[str, list[torch.Tensor]]


@dataclass(frozen=True)
class Apart:
    """How far two models are apart.

    Attributes:
        relative: max|a-b| / max|a| over all outputs.
        remark: How that was measured, if otherwise than by comparing the outputs.
        shows: The compared values vary, so that being equal means something.
    """

    relative: float
    remark: str = ""
    shows: bool = True


class RefusedError(Exception):
    """A model does not run on some inputs; ``compact`` tells which of the two."""

    def __init__(self, compact: bool, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.compact = compact


def run(model: nn.Module, inputs: Any) -> Any:
    """What the model returns for inputs in any form that `prunegate.wrap` takes."""
    with torch.no_grad():
        if isinstance(inputs, dict):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def tensors_of(outputs: Any) -> list[torch.Tensor]:
    """All tensors in nested containers, dataclasses and the output classes of transformers, in order."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        return [tensor for value in outputs.values() for tensor in tensors_of(value)]
    if isinstance(outputs, (list, tuple)):
        return [tensor for value in outputs for tensor in tensors_of(value)]
    if is_dataclass(outputs) and not isinstance(outputs, type):
        return [tensor for field in fields(outputs) for tensor in tensors_of(getattr(outputs, field.name))]
    return []


def apart(gated: nn.Module, compact: nn.Module, inputs: Any, selects: bool) -> Apart:
    """Compare copies of two models in double precision.

    Where the models pick by what they compute (``selects``) and picked differently, which rounding alone can
    bring about, what is computed before picking is compared instead.

    Raises:
        RefusedError: One of them does not run on the inputs.
    """
    inputs = tree_map_only(torch.Tensor, lambda x: x.double() if x.is_floating_point() else x, inputs)
    paths = _PROBES if selects else ()
    expected, parts = _outputs(gated, inputs, False, paths, root="model.")
    found, _ = _outputs(compact, inputs, True)
    difference = relative(expected, found)
    empty = not any(tensor.numel() for tensor in expected)
    if not selects or (difference <= TOLERANCE and not empty):
        return Apart(difference, shows=_vary(expected))
    _, others = _outputs(compact, inputs, True, paths, proposals=parts.get(_PROPOSALS))
    # A part that has lost channels itself, as a feature pyramid does, is compared by what reads it.
    common = [path for path in paths if path in parts and path in others and _alike(parts[path], others[path])]
    if not common:
        why = "nothing was detected" if empty else "it picked otherwise"
        return Apart(difference, f"{why}, and there is no backbone or head to compare instead", shows=not empty)
    why = "nothing was detected" if empty else "it picked otherwise, as rounding may make it"
    worst = max(relative(parts[path], others[path]) for path in common)
    return Apart(worst, f"{why}: compared {', '.join(common)}", shows=all(_vary(parts[path]) for path in common))


def _alike(expected: list[torch.Tensor], found: list[torch.Tensor]) -> bool:
    return [tuple(t.shape) for t in expected] == [tuple(t.shape) for t in found]


def relative(expected: list[torch.Tensor], found: list[torch.Tensor]) -> float:
    """max|a-b| / max|a| over all tensors; infinite if their shapes differ."""
    if not _alike(expected, found):
        return math.inf
    biggest = largest = 0.0
    for a, b in zip(expected, found, strict=True):
        if a.numel():
            a, b = a.double(), b.double()
            # Equal infinities, as in masked scores, are no difference.
            gap = float(torch.where(a == b, 0.0, (a - b).abs()).max())
            if not math.isfinite(gap):
                return math.inf
            biggest = max(biggest, gap)
            largest = max(largest, float(torch.where(a.isfinite(), a, 0.0).abs().max()))
    if biggest == 0.0:
        return 0.0
    return biggest / largest if largest else math.inf


def _vary(tensors: list[torch.Tensor]) -> bool:
    """Whether any of the tensors holds more than one value."""
    return any(bool((tensor != tensor.flatten()[0]).any()) for tensor in tensors if tensor.numel())


def _outputs(
    model: nn.Module,
    inputs: Any,
    compact: bool,
    probes: tuple[str, ...] = (),
    root: str = "",
    proposals: list[torch.Tensor] | None = None,
) -> tuple[list[torch.Tensor], Recorded]:
    """What a copy of the model in double precision returns, and what the probed modules in it do.

    Args:
        root: Prefix of the probed modules' paths.
        proposals: What the proposal network is made to propose, so that what follows it works on the same.
    """
    model = copy.deepcopy(model).double().eval()
    recorded: Recorded = {}
    for path in probes:
        _watch(model, root + path, _recorder(recorded, path))
    if probes and proposals is None:
        _watch(model, root + _PROPOSALS, _recorder(recorded, _PROPOSALS))
    elif probes:
        _watch(model, root + _PROPOSALS, lambda module, given, made: (proposals, made[1]))
    torch.manual_seed(0)  # should a model draw something, both draw the same
    try:
        with _widely():
            return tensors_of(run(model, inputs)), recorded
    except Exception as error:  # a foreign forward may raise anything
        raise RefusedError(compact, error) from error


def _watch(model: nn.Module, path: str, hook: Callable[..., Any]) -> None:
    """Hook a module, if there is one at this path."""
    modules = dict(model.named_modules())
    if path in modules:
        modules[path].register_forward_hook(hook)


def _recorder(recorded: Recorded, path: str) -> Callable[..., None]:
    def record(module: nn.Module, given: Any, made: Any) -> None:
        recorded.setdefault(path, []).extend(tensors_of(made))

    return record


class _Widening(TorchFunctionMode):
    """Casts to single precision in a model's code become casts to double: rounding there would hide differences."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "float" and args:
            return args[0].double()
        if any(value is torch.float32 for value in (*args, *kwargs.values())):
            args = tuple(torch.float64 if value is torch.float32 else value for value in args)
            kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in kwargs.items()}
        return func(*args, **kwargs)


@contextmanager
def _widely() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # for tensors that a forward makes
    try:
        with _Widening():
            yield
    finally:
        torch.set_default_dtype(before)
