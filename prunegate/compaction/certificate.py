"""A certificate: how far the compact model's outputs are from the gated model's, measured."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from prunegate.errors import CompactionError
from prunegate.groups import ExampleInputs
from prunegate.groups.trace import plain_outputs

# Largest relative difference, max|compact − gated| / max|gated|, at which a compaction is handed out.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}


@dataclass(frozen=True)
class Difference:
    """Largest differences over all outputs and inputs; relative to the largest gated output."""

    max_abs: float
    max_rel: float


@dataclass(frozen=True)
class Certificate:
    """What was compared, and how close it is.

    Attributes:
        float64: Differences with both models in double precision: the proof of losslessness.
        float32: Differences in single precision: what rounding adds.
        inputs: The inputs the models were run on.
    """

    float64: Difference
    float32: Difference
    inputs: tuple[str, ...] = ("example", "random")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def certify(
    gated: nn.Module, compact: nn.Module, inputs: ExampleInputs, not_weights: Iterable[nn.Parameter] = ()
) -> Certificate:
    """Run both models, in eval mode, on the example inputs and on random ones of the same form.

    Args:
        not_weights: Parameters of the gated model that its outputs are not computed with (logits), whose
            precision does not matter.

    Raises:
        CompactionError: They differ by more than `TOLERANCE`, in value or in the form of the outputs, or the
            compact model does not run.
    """
    found = {}
    for dtype in (torch.float64, torch.float32):
        try:
            found[dtype] = difference(gated, compact, (inputs, random_like(inputs)), dtype, not_weights)
        except Exception as error:  # a foreign forward may raise anything
            raise CompactionError(
                f"compaction: the compact model does not run: {type(error).__name__}: {error}. The model's code may "
                "branch on the number of channels, which the trial in wrap() need not meet. Exclude the channel "
                "groups it looks at with wrap(..., exclude=[...]), or keep other units."
            ) from error
        if not found[dtype].max_rel <= TOLERANCE[dtype]:
            raise CompactionError(
                f"compaction: the compact model differs from the gated one by {found[dtype].max_rel:.2g} "
                f"(relative, {str(dtype).removeprefix('torch.')}), expected at most {TOLERANCE[dtype]:.0e}. "
                "Nothing is handed out that computes something else. Please report the model; until then "
                "exclude the channel groups of its unusual layers with wrap(..., exclude=[...])."
            )
    return Certificate(found[torch.float64], found[torch.float32])


def difference(
    gated: nn.Module,
    compact: nn.Module,
    cases: Iterable[ExampleInputs],
    dtype: torch.dtype,
    not_weights: Iterable[nn.Parameter] = (),
) -> Difference:
    """Differences of two models in one precision over some inputs; infinite if their outputs differ in form.

    The compact model runs first: where it fails, it fails before the time for the other is spent.
    """
    with _evaluating(gated, dtype, not_weights) as first, _evaluating(compact, dtype) as second:
        biggest, largest = 0.0, 0.0
        for case in cases:
            arguments = case.map(lambda t: t.to(dtype) if t.is_floating_point() else t)
            found = outputs_of(second, arguments)
            expected = outputs_of(first, arguments)
            if [tuple(t.shape) for t in expected] != [tuple(t.shape) for t in found]:
                return Difference(math.inf, math.inf)
            for a, b in zip(expected, found, strict=True):
                if a.numel():
                    apart = float((a.double() - b.double()).abs().max())
                    if not math.isfinite(apart):
                        return Difference(math.inf, math.inf)
                    biggest = max(biggest, apart)
                    largest = max(largest, float(a.double().abs().max()))
    if biggest == 0.0:
        return Difference(0.0, 0.0)
    return Difference(biggest, biggest / largest if largest > 0 else math.inf)


@contextmanager
def _evaluating(model: nn.Module, dtype: torch.dtype, not_weights: Iterable[nn.Parameter] = ()) -> Iterator[nn.Module]:
    """The model in eval mode and in ``dtype``: itself where it already is, a copy where it is not."""
    training = {module: module.training for module in model.modules()}
    skipped = {id(parameter) for parameter in not_weights}
    tensors = [t for t in (*model.parameters(), *model.buffers()) if id(t) not in skipped]
    floats = {t.dtype for t in tensors if t.is_floating_point()}
    try:
        if floats - {dtype}:
            model = copy.deepcopy(model).to(dtype)
        yield model.eval()
    finally:
        for module, mode in training.items():
            module.training = mode


def outputs_of(model: nn.Module, inputs: ExampleInputs) -> list[torch.Tensor]:
    """All tensors that a model returns for these inputs, without gradients."""
    with torch.no_grad():
        outputs = model(*inputs.args, **inputs.kwargs)
    return [t for t in tree_leaves(plain_outputs(outputs)) if isinstance(t, torch.Tensor)]


def random_like(inputs: ExampleInputs) -> ExampleInputs:
    """Normal noise in place of every floating tensor; whole numbers (token ids, masks) stay as given."""
    generator = torch.Generator().manual_seed(0)
    return inputs.map(lambda t: torch.randn(t.shape, generator=generator).to(t.device) if t.is_floating_point() else t)
