"""Making a compact model again from a dense one, its plan and the form of its inputs: nothing else is stored.

Modules that are replayed are not stored as code, nor the sizes that are rewritten in calls. The dense model is
traced again and both are found anew, which gives the same by the same rules. The plan is compared with that trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from prunegate.compaction.consistency import check_guesses, followed
from prunegate.compaction.cut_sizes import CutRuns
from prunegate.compaction.fix_ups import FixUps, fix_up
from prunegate.compaction.plan import Plan
from prunegate.compaction.surgery import apply, apply_checked, check_tensors
from prunegate.errors import CompactionError, TraceError
from prunegate.groups import ExampleInputs

# As many as tell samples from a dimension of size one.
_SAMPLES = 2


@dataclass(frozen=True)
class Rebuilt:
    """A compact model that was made again, and how far that is proved right.

    Attributes:
        is_followed: The dense model's run was followed, and the plan is one of its channel groups.
        has_guesses: Besides what follows from the plan's masks, the model has sizes that were found by running, or
            modules that are replayed or whose calls are given other sizes.
    """

    model: nn.Module
    is_followed: bool
    has_guesses: bool


def rebuild(dense: nn.Module, plan: Plan, fix_ups: FixUps, inputs: ExampleInputs | None) -> nn.Module:
    """Cut ``dense`` in place by a complete plan and fix it up as the fix-ups say.

    Raises:
        CompactionError: the plan or the fix-ups do not fit the model.
    """
    return rebuild_checked(dense, plan, fix_ups, inputs).model


def rebuild_checked(dense: nn.Module, plan: Plan, fix_ups: FixUps, inputs: ExampleInputs | None) -> Rebuilt:
    """The same, telling how far the plan could be compared with a fresh analysis.

    Args:
        inputs: The form of the inputs that the plan was made with; None if it is not known.

    Raises:
        CompactionError: the plan or the fix-ups do not fit the model.
    """
    if plan.removes_nothing and fix_ups.is_plain:
        apply(dense, plan)  # which is not to pack padded sequences all the same
        return Rebuilt(dense, True, False)
    check_tensors(dense, plan.tensors)
    modules = dense.named_modules(remove_duplicate=False)
    before = {path: dict(vars(module)) for path, module in modules if path in plan.attributes}
    try:
        runs = _runs(dense, plan, fix_ups, inputs)
        derived = apply_checked(dense, plan, fix_ups.is_replayed)
        has_guesses = check_guesses(before, plan, derived, None if runs is None else runs.main)
        if fix_ups.is_plain:
            return Rebuilt(dense, runs is not None, has_guesses)
        if runs is None:
            raise CompactionError("inputs: found none, by which modules that are fixed up could be written again")
        return Rebuilt(fix_up(dense, runs, fix_ups), True, True)
    except CompactionError:
        raise
    except Exception as error:  # what is stored is played through the model's own code, which may raise anything
        raise CompactionError(
            f"{error}. The parts of the model that are replayed could not be written again; another version of "
            "torch or of the model's library may run it differently."
        ) from error


def _runs(dense: nn.Module, plan: Plan, fix_ups: FixUps, inputs: ExampleInputs | None) -> CutRuns | None:
    """The runs of the dense model; None where these cannot be followed and nothing has to be fixed up."""
    if inputs is None:
        return None
    if fix_ups.is_plain:
        # How many samples there are matters to code that is written anew alone, and more take longer to follow.
        inputs = inputs.of_samples(_SAMPLES)
    try:
        trace, analysis, keep = followed(dense, plan, fix_ups, inputs)
    except TraceError:
        if fix_ups.is_plain:
            return None
        if any(p.is_meta for p in dense.parameters()):
            raise
        # A file tells of its inputs their form alone, and shapes may depend on values (lengths of padded sequences).
        inputs = inputs.map(partial(_of_any_values, device=next(dense.parameters()).device))
        trace, analysis, keep = followed(dense, plan, fix_ups, inputs)
    again = trace.with_more_samples(dense, inputs) if fix_ups.replays else None
    return CutRuns.of(trace, analysis, keep, inputs, again)


def _of_any_values(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the form of one without data. One is a length, an index, a token of nearly every model."""
    if not tensor.is_meta:
        return tensor
    if tensor.is_floating_point():
        generator = torch.Generator().manual_seed(0)
        return torch.randn(tensor.shape, generator=generator).to(device, tensor.dtype)
    return torch.ones(tensor.shape, dtype=tensor.dtype, device=device)
