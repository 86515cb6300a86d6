"""Rebuilding a compact model from a dense one, its plan and the form of its inputs; nothing else is stored.

Neither the code of replayed modules nor the rewritten sizes in calls are stored. The dense model is traced again and
both are derived again by the same rules. The plan is compared with that trace.
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

# Enough to distinguish the batch dimension from a dimension of size one.
_SAMPLES = 2


@dataclass(frozen=True)
class Rebuilt:
    """A rebuilt compact model, and how far it is proved correct.

    Attributes:
        is_followed: The dense model's run was traced, and the plan matches its channel groups.
        has_guesses: Besides what follows from the plan's masks, the model has sizes that were found by running,
            replayed modules, or rewritten sizes in calls.
    """

    model: nn.Module
    is_followed: bool
    has_guesses: bool


def rebuild(dense: nn.Module, plan: Plan, fix_ups: FixUps, inputs: ExampleInputs | None) -> nn.Module:
    """Cut ``dense`` in place by a complete plan and apply the fix-ups.

    Raises:
        CompactionError: the plan or the fix-ups do not fit the model.
    """
    return rebuild_checked(dense, plan, fix_ups, inputs).model


def rebuild_checked(dense: nn.Module, plan: Plan, fix_ups: FixUps, inputs: ExampleInputs | None) -> Rebuilt:
    """Like `rebuild`, but also report how far the plan could be compared with a fresh analysis.

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
            raise CompactionError("inputs: found none, but they are needed to rebuild modules with fix-ups")
        return Rebuilt(fix_up(dense, runs, fix_ups), True, True)
    except CompactionError:
        raise
    except Exception as error:  # stored data goes through the model's own code, which may raise anything
        raise CompactionError(
            f"{error}. The replayed parts of the model could not be rebuilt; another version of "
            "torch or of the model's library may run it differently."
        ) from error


def _runs(dense: nn.Module, plan: Plan, fix_ups: FixUps, inputs: ExampleInputs | None) -> CutRuns | None:
    """The runs of the dense model; None if they cannot be traced and no fix-ups are needed."""
    if inputs is None:
        return None
    if fix_ups.is_plain:
        # The number of samples only matters for replayed code, and more samples take longer to trace.
        inputs = inputs.of_samples(_SAMPLES)
    try:
        trace, analysis, keep = followed(dense, plan, fix_ups, inputs)
    except TraceError:
        if fix_ups.is_plain:
            return None
        if any(p.is_meta for p in dense.parameters()):
            raise
        # A file stores only the form of its inputs, and shapes may depend on values (lengths of padded sequences).
        inputs = inputs.map(partial(_of_any_values, device=next(dense.parameters()).device))
        trace, analysis, keep = followed(dense, plan, fix_ups, inputs)
    again = trace.with_more_samples(dense, inputs) if fix_ups.replays else None
    return CutRuns.of(trace, analysis, keep, inputs, again)


def _of_any_values(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of ones with the given form: 1 is a valid length, index or token in nearly every model."""
    if not tensor.is_meta:
        return tensor
    if tensor.is_floating_point():
        generator = torch.Generator().manual_seed(0)
        return torch.randn(tensor.shape, generator=generator).to(device, tensor.dtype)
    return torch.ones(tensor.shape, dtype=tensor.dtype, device=device)
