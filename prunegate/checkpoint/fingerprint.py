"""A model's outputs on given inputs in a few numbers, to detect a library that computes something else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunegate.compaction import Widely, evaluating, outputs_of
from prunegate.groups import ExampleInputs

# Largest difference of a number, relative to the outputs' size; rounding in double precision is far smaller.
TOLERANCE = 1e-6
# Most integers of the inputs (token ids, masks) that are stored verbatim.
_MOST_INTEGERS = 4096
_MOST_OUTPUTS = 64


@dataclass(frozen=True)
class Fingerprint:
    """Outputs of a model in eval mode and double precision.

    Attributes:
        inputs: Form of the inputs; floating ones are normal noise from a generator seeded with 0.
        integers: The entries of each integer input, in order.
        outputs: For each output tensor, its shape, mean, root mean square, and a sum with cosine weights.
    """

    inputs: Any
    integers: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[tuple[int, ...], tuple[float, float, float]], ...]

    @classmethod
    def of(cls, model: nn.Module, inputs: ExampleInputs) -> Fingerprint | None:
        """The fingerprint of a model; None if the inputs cannot be described or the outputs carry no information."""
        whole = [t for t in inputs.tensors() if not t.is_floating_point()]
        if sum(t.numel() for t in whole) > _MOST_INTEGERS or any(t.is_complex() for t in whole):
            return None
        integers = tuple(tuple(int(v) for v in t.reshape(-1).tolist()) for t in whole)
        form = inputs.describe()
        result = _numbers(model, _made(form, integers))
        if not 0 < len(result) <= _MOST_OUTPUTS or not all(math.isfinite(v) for _, values in result for v in values):
            return None
        return cls(form, integers, result)

    def difference(self, model: nn.Module) -> float:
        """Largest difference of the outputs of ``model`` from these; infinite if they have another form.

        It is relative to the root mean square of each output.
        """
        actual = _numbers(model, self.example_inputs())
        if [shape for shape, _ in actual] != [shape for shape, _ in self.outputs]:
            return math.inf
        worst = 0.0
        for (_, values), (_, expected) in zip(actual, self.outputs, strict=True):
            size = max(abs(expected[1]), 1e-300)
            worst = max(worst, *(abs(a - b) / size for a, b in zip(values, expected, strict=True)))
        return worst if math.isfinite(worst) else math.inf

    def example_inputs(self) -> ExampleInputs:
        """The inputs it was made with, floating ones in double precision."""
        return _made(self.inputs, self.integers)

    def form_of_inputs(self) -> ExampleInputs:
        """Inputs of the same form, without data."""
        return ExampleInputs.of_form(self.inputs)

    def as_dict(self) -> dict[str, Any]:
        return {
            "inputs": self.inputs,
            "integers": [list(entries) for entries in self.integers],
            "outputs": [{"shape": list(shape), "numbers": list(values)} for shape, values in self.outputs],
        }

    @classmethod
    def from_dict(cls, data: Any) -> Fingerprint:
        """Read what `as_dict` wrote, trusting nothing.

        Raises:
            ValueError: Naming the field that is not as expected.
        """
        if not isinstance(data, dict):
            raise ValueError(f"fingerprint: found {type(data).__name__}, expected an object")
        try:
            inputs = ExampleInputs.of_form(data.get("inputs"))
        except ValueError as error:
            raise ValueError(f"fingerprint.{error}") from error
        lists = data.get("integers")
        if not isinstance(lists, list) or not all(_are_whole(entries) for entries in lists):
            raise ValueError("fingerprint.integers: expected a list of lists of whole numbers")
        wanted = [t.numel() for t in inputs.tensors() if not t.is_floating_point()]
        if [len(entries) for entries in lists] != wanted:
            raise ValueError("fingerprint.integers: expected one entry for each of the integer inputs")
        if sum(t.numel() for t in inputs.tensors()) > _MOST_NUMBERS:
            raise ValueError(f"fingerprint.inputs: expected at most {_MOST_NUMBERS} numbers in all")
        outputs = data.get("outputs")
        if not isinstance(outputs, list) or not 0 < len(outputs) <= _MOST_OUTPUTS:
            raise ValueError(f"fingerprint.outputs: expected a list of 1 to {_MOST_OUTPUTS} outputs")
        return cls(data["inputs"], tuple(map(tuple, lists)), tuple(_output(o, i) for i, o in enumerate(outputs)))


# Inputs of this many numbers take a gibibyte.
_MOST_NUMBERS = 1 << 27


def _output(data: Any, number: int) -> tuple[tuple[int, ...], tuple[float, float, float]]:
    where = f"fingerprint.outputs[{number}]"
    if not isinstance(data, dict) or not _are_whole(data.get("shape")):
        raise ValueError(f"{where}.shape: expected a list of sizes")
    values = data.get("numbers")
    if not isinstance(values, list) or len(values) != 3 or not all(type(v) in (int, float) for v in values):
        raise ValueError(f"{where}.numbers: expected three numbers")
    return tuple(data["shape"]), (float(values[0]), float(values[1]), float(values[2]))


def _are_whole(entries: Any) -> bool:
    return isinstance(entries, list) and all(type(e) is int and abs(e) < 1 << 63 for e in entries)


def _made(form: Any, integers: tuple[tuple[int, ...], ...]) -> ExampleInputs:
    """Inputs of a form: the given integers, and noise."""
    generator = torch.Generator().manual_seed(0)
    entries = iter(integers)

    def filled(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point():
            return torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        return torch.tensor(next(entries), dtype=tensor.dtype).reshape(tensor.shape)

    return ExampleInputs.of_form(form).alone().map(filled)


def _numbers(model: nn.Module, inputs: ExampleInputs) -> tuple[tuple[tuple[int, ...], tuple[float, float, float]], ...]:
    with torch.random.fork_rng(devices=[]), evaluating(model, torch.float64) as widened, Widely(torch.float64):
        torch.manual_seed(0)
        device = next((p.device for p in widened.parameters()), torch.device("cpu"))
        outputs = outputs_of(widened, inputs.map(lambda t: t.to(device)))
    results = []
    for output in outputs:
        flat = output.detach().double().reshape(-1).cpu()
        weights = torch.cos(torch.arange(flat.numel(), dtype=torch.float64))
        count = max(flat.numel(), 1)
        mean, square = float(flat.sum()) / count, float(flat.square().sum()) / count
        results.append((tuple(output.shape), (mean, math.sqrt(square), float(flat @ weights) / math.sqrt(count))))
    return tuple(results)
