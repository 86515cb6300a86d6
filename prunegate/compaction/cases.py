"""The cases in which two models are compared, and the differences that the cut does not cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from prunegate.compaction.equivalence import Difference, Found, Kept, Side, difference, put_aside, run
from prunegate.compaction.precision import random_like
from prunegate.errors import CompactionError, first_line
from prunegate.groups import ExampleInputs
from prunegate.groups.following.input_sizes import Variation

# Differences up to this multiple of the gated model's own rounding error are attributed to rounding.
ROUNDINGS = 16


@dataclass(frozen=True)
class Case:
    """One case in which two models are run and compared.

    Attributes:
        inputs: The inputs of both.
        name: How these inputs differ from the example inputs, for the certificate.
    """

    name: str
    inputs: ExampleInputs
    training: bool = False
    gradients: bool = False

    def __str__(self) -> str:
        mode = "training mode" if self.training else "eval mode"
        return f"{mode}, {self.name}" + (", with gradients" if self.gradients else "")


def compared(
    gated: Side, compact: Side, case: Case, inputs: ExampleInputs, kept: Kept, unexplained: float = 1e-9
) -> tuple[Difference | None, Case, str]:
    """Compare two models in one case.

    The dense model is run before the cut is blamed: if it fails too, the cut is not the cause.

    Args:
        unexplained: Differences above this are attributed to rounding if that explains them.

    Returns:
        The difference, or None if the model does not run in this case; the case that was compared, without gradients if
        these do not exist; and what could not be compared, and why.

    Raises:
        CompactionError: The compact model does not run where the dense one does.
    """
    with put_aside(gated.model, compact.model):
        try:
            expected = run(gated, inputs, case.training, case.gradients)
            actual = run(compact, inputs, case.training, case.gradients)
        except Exception as error:  # a foreign forward may raise anything
            failed = error
        else:
            apart = difference(expected, actual, kept)
            if not apart.max_rel <= unexplained:
                swing = _swing(gated, case, inputs, expected)
                if apart.max_rel <= ROUNDINGS * swing:
                    return None, case, f"rounding alone changes it by {swing:.1g} (relative)"
            return apart, case, ""
    why = _why_not(gated.inner, case, inputs)
    if why and case.gradients:
        without = replace(case, gradients=False)
        return *compared(gated, compact, without, inputs, kept, unexplained)[:2], f"no gradients: {why}"
    if why:
        return None, case, why
    raise CompactionError(
        f"compaction: the compact model does not run ({case}): {type(failed).__name__}: {first_line(failed)}. The "
        "model's code may branch on the number of channels, which the dry run in wrap() may not have covered. Exclude "
        "the channel groups that it reads with wrap(..., exclude=[...]), or keep other units."
    ) from failed


def _swing(gated: Side, case: Case, inputs: ExampleInputs, expected: Found) -> float:
    """Relative change of the gated model's outputs if its weights change in their last digits.

    In training mode with few samples, BatchNorm may divide by nearly zero, layer after layer.
    """
    parameters = [p for p in gated.inner.parameters() if p.is_floating_point()]
    before = [p.detach().clone() for p in parameters]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for p in parameters:
                noise = torch.rand(p.shape, generator=generator, dtype=torch.float32).to(p.device, p.dtype)
                p.mul_(1 + (noise - 0.5) * 16 * torch.finfo(p.dtype).eps)
        with put_aside(gated.model):
            return difference(expected, run(gated, inputs, case.training, case.gradients)).max_rel
    finally:
        with torch.no_grad():
            for p, values in zip(parameters, before, strict=True):
                p.copy_(values)


def _why_not(dense: nn.Module, case: Case, inputs: ExampleInputs) -> str:
    """Why the dense model does not run in this case; empty if it does."""
    with put_aside(dense):
        try:
            run(Side.of(dense), inputs, case.training, case.gradients)
        except Exception as error:  # a foreign forward may raise anything
            return f"the model does not run in this case ({type(error).__name__}: {first_line(error)})"
    return ""


def cases_of(inputs: ExampleInputs, variations: Sequence[Variation]) -> list[Case]:
    """The cases in which a compact model is compared.

    On the example inputs; at another size, with gradients; in training mode; and on the user's ``other_calls``.
    """
    noise = random_like(inputs)
    taken = next((v for v in variations if v.layout is not None and v.other is None), None)
    other = noise.of_samples(_FEW + 1) if inputs.batch_size() > _FEW else noise.doubled()
    cases = [Case("as given", inputs)]
    if taken is not None:
        cases.append(Case("another number of samples and another size", taken.of(noise.of_samples(_FEW)), False, True))
    else:
        cases.append(Case("another number of samples", other, False, True))
    cases.append(Case("random inputs", _few(noise), True, True))
    for number in sorted({v.other for v in variations if v.other is not None}):
        call, name = _few(noise.others[number]), f"other_calls[{number}]"
        cases += [Case(name, call, training, gradients=True) for training in (False, True)]
        resized = next((v for v in variations if v.layout is not None and v.other == number), None)
        if resized is not None:
            cases.append(Case(f"{name} at another size", resized.of(noise), False, True))
    return cases


def _few(inputs: ExampleInputs) -> ExampleInputs:
    """A few samples; more than one, as BatchNorm cannot train on a single value."""
    return inputs.of_samples(_FEW) if inputs.batch_size() > 1 else inputs.doubled()


# More samples would not show more.
_FEW = 2
