"""Dry runs of training mode, gradients and other sizes, if code other than torch's affects them."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from prunegate.compaction.cases import cases_of, compared
from prunegate.compaction.cut_sizes import CutRuns
from prunegate.compaction.equivalence import Side
from prunegate.compaction.faults import Fault
from prunegate.compaction.fix_ups import CannotBeReplayedError, FixUps, fix_up
from prunegate.compaction.plan import Plan
from prunegate.compaction.precision import Widely
from prunegate.compaction.surgery import cut
from prunegate.errors import CompactionError
from prunegate.gates import GateSites
from prunegate.groups import Analysis, FakeTensors, Trace, copy_with
from prunegate.groups.following.outputs import tensors_in
from prunegate.groups.torch_workarounds.kernels import exact_arithmetic, layers_by_parts

logger = logging.getLogger(__name__)

# Relative differences in double precision that count as a fault; some code computes in single precision.
_SUSPECT = 1e-6


def other_fault_of(model: nn.Module, runs: CutRuns, fix_ups: FixUps, dtype: torch.dtype) -> Fault | None:
    """The fault, if a cut copy of a model differs from the masked one in training, in gradients or at another size."""
    sizes = runs.main
    masked, compact = (copy_with(model, _own_state).eval() for _ in range(2))
    keep = torch.from_numpy(sizes.keep).to(next(iter(masked.parameters())).device, torch.float32)
    plan = Plan.of(sizes.analysis, sizes.keep)
    first = _Masked(masked, sizes.analysis, keep)
    cut(compact, plan)
    variations = [] if fix_ups.replays else [run.variation for run in runs.runs]
    try:
        sides = Side(first, masked), Side.of(fix_up(compact, runs, fix_ups))
    except CannotBeReplayedError as error:
        return error.fault
    with Widely(dtype), exact_arithmetic(keep.device):
        for case in cases_of(runs.inputs, variations)[1:]:
            inputs = case.inputs.map(lambda t: t.to(dtype) if t.is_floating_point() else t)
            try:
                result, done, _ = compared(*sides, case, inputs, plan.tensors)
            except CompactionError as error:
                return Fault("", f"does not run ({case}): {error.__cause__}")
            apart = 0.0 if result is None else result.max_rel
            if not apart <= _SUSPECT:
                return Fault("", f"computes something else than the masked model ({done}; relative {apart:.1g})")
    return None


class _Masked(nn.Module):
    """A model under one mask."""

    def __init__(self, model: nn.Module, analysis: Analysis, keep: torch.Tensor) -> None:
        super().__init__()
        self.model, self._sites, self._keep = model, GateSites(model, analysis), keep

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return under_mask(self._sites, self.model, self._keep, *args, **kwargs)


def trains_otherwise(trace: Trace) -> bool:
    """Whether the model's code does more in training mode than drop results at random."""
    known = [run.tape for run in trace.runs if not run.training]
    operations = {operation.func for tape in known for operation in tape.operations}
    places = {key.place for tape in known for key in tape.sized}
    return any(
        (operation.func not in operations and operation.func._schema.name.split("::")[1] not in _DROPPING)
        for run in trace.runs
        if run.training
        for operation in run.tape.operations
    ) or any(
        key.place not in places and call.function not in _DROPPING
        for run in trace.runs
        if run.training
        for key, call in run.tape.sized.items()
    )


# The operations of dropout, stochastic depth and BatchNorm over the batch.
_DROPPING = frozenset(
    """native_batch_norm _native_batch_norm_legit _batch_norm_with_update cudnn_batch_norm native_dropout bernoulli
    bernoulli_ detach empty new_empty rand rand_like empty_like div div_ mul mul_ add add_ floor floor_ lt gt truediv
    imul itruediv""".split()
)


def has_own_backward(model: nn.Module, runs: CutRuns) -> bool:
    """Whether any result of the model has a backward that is not torch's own, checked without arithmetic."""
    fake_tensors = FakeTensors(runs.kind)
    copied = fake_tensors.of_model(model).eval()
    try:
        with fake_tensors.running(), torch.enable_grad():
            for name, _ in model.named_parameters():
                tensor = _stored(copied, name)
                if tensor.is_floating_point():
                    tensor.requires_grad_()
            inputs = runs.inputs.map(fake_tensors.of)
            outputs = tensors_in(copied(*inputs.args, **inputs.kwargs))
    except Exception as reason:  # a foreign forward may raise anything
        logger.info("how gradients are computed could not be seen: %s", reason)
        return True
    pending: list[Any] = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
    seen: set[Any] = set(pending)
    while pending:
        node = pending.pop()
        made_by = getattr(node, "_forward_cls", None)
        if made_by is not None and not made_by.__module__.startswith("torch."):
            return True
        following = {one for one, _ in node.next_functions if one is not None} - seen
        seen |= following
        pending += following
    return False


def _stored(model: nn.Module, name: str) -> torch.Tensor:
    path, _, attribute = name.rpartition(".")
    result = getattr(model.get_submodule(path), attribute)
    assert isinstance(result, torch.Tensor)
    return result


def _own_state(tensor: torch.Tensor) -> torch.Tensor:
    """The parameter itself, or a copy of a buffer, which a run may change."""
    return tensor if isinstance(tensor, nn.Parameter) else tensor.detach().clone()


def under_mask(sites: GateSites, model: nn.Module, mask: torch.Tensor, /, *args: Any, **kwargs: Any) -> Any:
    """Run a model under one mask, shape (units,)."""
    with layers_by_parts():
        return sites.run(model, mask, args, kwargs)
