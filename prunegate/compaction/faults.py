"""Finding the module whose own code fails on smaller tensors, by running and comparing.

The run of the dense model gives the inputs and outputs of every module. The cut model is run on the same inputs with
hooks on its modules; the first wrong tensor identifies the code that made it. If a module gets a wrong input, the
module that calls it is at fault. If its output is wrong although its children's were right, the module itself is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from prunegate.compaction.cut_sizes import CutSizes
from prunegate.compaction.plan import kept_of
from prunegate.errors import first_line
from prunegate.groups import ExampleInputs, Span, map_tensors, values_in
from prunegate.groups.following.running import same_draws
from prunegate.groups.torch_workarounds.fake_tensors import lacks_data


@dataclass(frozen=True)
class Fault:
    """A module whose own code fails in the cut model, and the error.

    Attributes:
        position: Number of correct tensors before the fault.
    """

    module: str
    error: str
    position: int = 0


class _FaultError(Exception):
    def __init__(self, fault: Fault) -> None:
        self.fault = fault


class _Later(NamedTuple):
    """A pending comparison, whose numbers are still on the device: two sketches and the allowed difference."""

    expected: torch.Tensor
    actual: torch.Tensor
    tolerance: float


# Takes a description, a tensor's number on the tape and the tensor; returns what is wrong with it, if anything.
_Check: TypeAlias = Callable[[str, int, torch.Tensor], "str | _Later | None"]


def shape_fault(model: nn.Module, inputs: ExampleInputs, sizes: CutSizes) -> tuple[Fault | None, int]:
    """The first module that fails or makes a tensor of an unexpected shape; and the number of compared tensors.

    If sizes depend on values, only the cut dimensions are compared.
    """
    exact = sizes.is_fixed

    def check(_place: str, number: int, tensor: torch.Tensor) -> str | None:
        expected, kept = sizes.shape(number), sizes.kept(number)
        if tensor.dim() == len(expected) and all(
            actual == wanted or (mask is None and not exact)
            for actual, wanted, mask in zip(tensor.shape, expected, kept, strict=True)
        ):
            return None
        return f"makes a tensor of shape {tuple(tensor.shape)}, expected {expected}"

    return _run(model, model, inputs, sizes, check)


def value_fault(
    masked: nn.Module,
    run_masked: Callable[..., Any],
    model: nn.Module,
    inputs: ExampleInputs,
    sizes: CutSizes,
    tolerance: float,
) -> Fault | None:
    """The first module of the cut model whose tensors differ from the kept positions in the masked model.

    Tensors are compared by a random projection relative to their norm, so that nothing large is stored.

    Args:
        run_masked: Called like ``masked``; runs it under the masks.
    """
    expected: dict[str, torch.Tensor] = {}
    sketch = _Sketch()

    def note(place: str, number: int, tensor: torch.Tensor) -> None:
        if tuple(tensor.shape) == sizes.tape.shapes[number]:
            expected[place] = sketch(kept_of(tensor, dict(enumerate(sizes.kept(number)))))

    def check(place: str, _number: int, tensor: torch.Tensor) -> str | _Later | None:
        if place not in expected:
            return None
        later = _Later(expected[place], sketch(tensor), tolerance)
        return _told([later])[0] if tensor.device.type == "cpu" else later

    failed, _ = _run(masked, run_masked, inputs, sizes, note)
    if failed is not None:
        return failed
    return _run(model, model, inputs, sizes, check)[0]


def _told(comparisons: Sequence[_Later]) -> list[str | None]:
    """What is wrong with each; synchronises with the device once."""
    if not comparisons:
        return []
    both = torch.stack([torch.stack([c.expected, c.actual.to(c.expected.device)]) for c in comparisons]).tolist()
    told: list[str | None] = []
    for ((a, size), (b, _)), comparison in zip(both, comparisons, strict=True):
        if abs(a - b) <= comparison.tolerance * size or size != size:
            told.append(None)
        else:
            told.append(f"computes something else than the masked model (relative difference {abs(a - b) / size:.1g})")
    return told


class _Sketch:
    """A random projection of a tensor's entries, and its average size: float64, shape (2,)."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._directions: dict[torch.device, torch.Tensor] = {}

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach()
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor)
        flat = (tensor.cpu() if tensor.device.type == "mps" else tensor).reshape(-1).to(torch.float64)
        count = flat.numel()
        if count == 0:
            return torch.tensor([0.0, 1.0], dtype=torch.float64, device=flat.device)
        directions = self._first(count, flat.device)
        norm = flat.norm()
        if flat.device.type != "cpu" or not math.isfinite(norm):  # on other devices the check would synchronise
            flat = flat.nan_to_num(0.0, 0.0, 0.0)
            norm = flat.norm()
        return torch.stack([flat @ directions, norm * 12**-0.5 + 1e-300])

    def _first(self, count: int, device: torch.device) -> torch.Tensor:
        cpu = torch.device("cpu")
        known = self._directions.get(cpu, torch.zeros(0, dtype=torch.float64))
        more = count - known.numel()
        if more > 0:  # extended instead of redrawn, as the same entries need the same numbers
            drawn = torch.rand(more, dtype=torch.float64, generator=self._generator).sub_(0.5)
            known = self._directions[cpu] = torch.cat([known, drawn])
        there = self._directions.get(device)
        if there is None or there.numel() < count:
            there = self._directions[device] = known.to(device)
        return there[:count]


def _run(
    model: nn.Module, call: Callable[..., Any], inputs: ExampleInputs, sizes: CutSizes, check: _Check
) -> tuple[Fault | None, int]:
    running: list[str] = [""]
    passed = [0]
    later: list[tuple[str, int, _Later]] = []
    fault: Fault | None = None
    try:
        # Some models draw random numbers in eval mode too: all compared models draw the same.
        draws = nullcontext() if any(map(lacks_data, inputs.tensors())) else same_draws()
        with _hooks(model, sizes, check, running, passed, later), torch.no_grad(), draws:
            given = inputs.copied()  # other models run on the same inputs, which must not change
            call(*given.args, **given.kwargs)
    except _FaultError as raised:
        fault = raised.fault
    except Exception as error:  # a foreign forward may raise anything
        fault = Fault(running[-1], f"{type(error).__name__}: {first_line(error)}", passed[0])
    for (blamed, position, _), wrong in zip(later, _told([one for _, _, one in later]), strict=True):
        if wrong is not None:  # a fault that was found earlier takes precedence
            return Fault(blamed, wrong, position), passed[0]
    return fault, passed[0]


@contextmanager
def _hooks(
    model: nn.Module,
    sizes: CutSizes,
    check: _Check,
    running: list[str],
    passed: list[int],
    later: list[tuple[str, int, _Later]],
) -> Iterator[None]:
    spans: dict[str, list[Span]] = {}
    for span in sizes.tape.spans:
        if isinstance(span.target, str):
            spans.setdefault(span.target, []).append(span)
    calls: Counter[str] = Counter()

    def compare(place: str, expected: Any, actual: Any, blamed: str) -> None:
        tensors: list[torch.Tensor] = []
        map_tensors(actual, tensors.append)
        values = values_in(expected)
        if len(values) != len(tensors):
            return
        for i, (value, tensor) in enumerate(zip(values, tensors, strict=True)):
            with torch._C.DisableTorchFunction():  # otherwise call sites would count the calls of checks
                error = check(f"{place}.{i}", value.number, tensor)
            if isinstance(error, _Later):
                later.append((blamed, passed[0], error))
            elif error is not None:
                raise _FaultError(Fault(blamed, error, passed[0]))
            passed[0] += 1

    def enter(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            number = calls[path]
            calls[path] += 1
            if number < len(spans[path]):
                span = spans[path][number]
                compare(f"{path}>{number}", (span.args, span.kwargs), (args, kwargs), running[-1])
            running.append(path)

        return hook

    def leave(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            running.pop()
            number = calls[path] - 1
            if number < len(spans[path]):
                compare(f"{path}<{number}", spans[path][number].result, output, path)

        return hook

    handles = []
    for path, module in model.named_modules():
        if path in spans:
            handles.append(module.register_forward_pre_hook(enter(path), with_kwargs=True))
            handles.append(module.register_forward_hook(leave(path)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
