"""A dry run of the surgery before any training: finds the fix-ups of each model, and the groups that cannot be cut."""

from __future__ import annotations

import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from prunegate.compaction.cut_sizes import CutRuns
from prunegate.compaction.faults import Fault, shape_fault, value_fault
from prunegate.compaction.fix_ups import FixUps, fix_up, settle
from prunegate.compaction.other_ways import has_own_backward, other_fault_of, trains_otherwise, under_mask
from prunegate.compaction.plan import Mask, Plan
from prunegate.compaction.precision import Widely, converted, outputs_of, random_like
from prunegate.compaction.surgery import cut
from prunegate.gates import GateSites
from prunegate.groups import Analysis, ExampleInputs, FakeTensors, Pin, Trace, copy_with, the_same
from prunegate.groups.following.running import running_unfollowed
from prunegate.groups.torch_workarounds.kernels import exact_arithmetic

logger = logging.getLogger(__name__)

# Groups of a kind that have to fail one by one before the rest are refused without a try.
_ENOUGH = 2
# Relative differences between module outputs of the masked and the cut model that count as a fault.
_SUSPECT = {torch.float32: 1e-3, torch.float64: 1e-8}


@dataclass
class DryRun:
    """Cuts copies of a model and runs them, to find out what compaction can remove.

    A random half of all units is cut and the copy is run: on fake tensors, to check all shapes, and then on noise of
    the inputs' form, to compare every module with the masked model's. The other half is then tried as well, so that
    every unit has been removed once. Values are compared under random weights, since a branch that a fresh model scales
    by zero or 1e-6 hides every mistake inside it. Modules whose code fails are replayed. If that does not help, halves
    of the list of groups are added to the working set as long as it keeps working, which finds the failing groups in
    few runs.
    """

    model: nn.Module
    inputs: ExampleInputs
    trace: Trace
    analysis: Analysis
    fix_ups: FixUps
    refused: dict[str, Pin] = field(default_factory=dict)
    _randomised: nn.Module | None = None
    _known: dict[Any, CutRuns] = field(default_factory=dict)

    def run(self) -> None:
        """Find the fix-ups, and fill `refused` with the groups that cannot be cut."""
        checks: list[Callable[[Sequence[str]], Fault | None]] = [self._shapes]
        if not self._has_no_values():
            checks += [self._values, self._other_ways]
        for check in checks:
            names = [group.name for group in self.analysis.groups if group.name not in self.refused]
            fault = check(names)
            if fault is None:
                continue
            logger.info("searching for the groups that cannot be cut: %s: %s", fault.module, fault.error)
            _, errors = _largest_working(names, partial(_error_of, check), _kind_of)
            self.refused.update({name: Pin(f"cutting it breaks the model: {e}") for name, e in errors.items()})
        self._randomised, self._known = None, {}  # free them: they are as large as the model
        if self.refused:
            logger.info("%d channel groups cannot be cut", len(self.refused))

    def _runs(self, keep: Mask) -> CutRuns:
        key = (keep.tobytes(), self.fix_ups.replays)
        if key not in self._known:
            again = self.trace.with_more_samples(self.model, self.inputs) if self.fix_ups.replays else None
            self._known = {key: CutRuns.of(self.trace, self.analysis, keep, self.inputs, again)}
        return self._known[key]

    def _settled(self, keep: Mask, fault_of: Callable[[CutRuns, FixUps], Fault | None]) -> Fault | None:
        def attempt(fix_ups: FixUps) -> Fault | None:
            self.fix_ups = fix_ups
            return fault_of(self._runs(keep), fix_ups)

        before = self.fix_ups
        self.fix_ups, fault = settle(before, self.model, self._runs(keep).main, attempt)
        if fault is not None:  # fix-ups that did not help these groups do not help others
            self.fix_ups = before
        return fault

    def _shapes(self, chosen: Sequence[str]) -> Fault | None:
        keep, _ = _halves(self.analysis, frozenset(chosen))
        return self._settled(keep, lambda runs, fix_ups: shape_fault_of(self.model, runs, fix_ups))

    def _values(self, chosen: Sequence[str]) -> Fault | None:
        for keep in _halves(self.analysis, frozenset(chosen)):
            fault = self._settled(keep, self._value_fault)
            if fault is not None:
                return fault
        return None

    def _other_ways(self, chosen: Sequence[str]) -> Fault | None:
        """Check training mode, gradients and other sizes, if code other than torch's own functions affects them."""
        keep, _ = _halves(self.analysis, frozenset(chosen))
        runs = self._runs(keep)
        trace = self.trace
        is_unusual = bool(self.inputs.others or trace.untaken or trace.not_followed) or trains_otherwise(trace)
        if self.fix_ups.is_plain and not is_unusual and not has_own_backward(self.model, runs):
            return None
        if self._randomised is None:
            self._randomised = randomised_copy(self.model, self.inputs)
        # Gradients have larger rounding errors than outputs: single precision would prove little.
        return other_fault_of(copy_with(self._randomised, _doubled), runs, self.fix_ups, torch.float64)

    def _value_fault(self, runs: CutRuns, fix_ups: FixUps) -> Fault | None:
        if self._randomised is None:
            self._randomised = randomised_copy(self.model, self.inputs)
        fault = value_fault_of(self._randomised, runs, fix_ups, torch.float32)
        if fault is None:
            return None
        # In single precision the difference may be rounding.
        return value_fault_of(copy_with(self._randomised, _doubled), runs, fix_ups, torch.float64)

    def _has_no_values(self) -> bool:
        tensors = (*self.model.parameters(), *self.model.buffers(), *self.inputs.tensors())
        return any(t.is_meta for t in tensors)


def shape_fault_of(model: nn.Module, runs: CutRuns, fix_ups: FixUps) -> Fault | None:
    """The first fault of a cut copy of ``model`` in any of the runs, found without arithmetic if possible."""
    fake_tensors = FakeTensors(runs.kind)
    passed = 0
    fixed_up: nn.Module | None = None
    for sizes in runs.at_given_sizes() if fix_ups.replays else runs.runs:
        with running_unfollowed(fake_tensors, sizes.variation.dropped):
            if fixed_up is None:
                fixed_up = fake_tensors.of_model(model).eval()
                cut(fixed_up, Plan.of(sizes.analysis, sizes.keep))
                fixed_up = fix_up(fixed_up, runs, fix_ups)
            one = copy_with(fixed_up, the_same) if len(runs.runs) > 1 else fixed_up
            inputs = sizes.variation.of(runs.inputs).map(fake_tensors.of)
            fault, count = shape_fault(one.train(sizes.training), inputs, sizes)
        if fault is not None:
            return replace(fault, position=fault.position + passed)
        passed += count
    return None


def value_fault_of(model: nn.Module, runs: CutRuns, fix_ups: FixUps, dtype: torch.dtype) -> Fault | None:
    """The first module of a cut copy whose output differs from the masked model's."""
    sizes = runs.main
    masked, compact = (copy_with(model, the_same).eval() for _ in range(2))
    device = next(iter(masked.parameters())).device
    sites = GateSites(masked, sizes.analysis)
    keep = torch.from_numpy(sizes.keep).to(device, torch.float32)
    cut(compact, Plan.of(sizes.analysis, sizes.keep))
    arguments = random_like(runs.inputs).map(lambda t: t.to(dtype) if t.is_floating_point() else t)
    fixed_up = fix_up(compact, runs, fix_ups)
    with Widely(dtype), exact_arithmetic(device):
        return value_fault(
            masked, partial(under_mask, sites, masked, keep), fixed_up, arguments, sizes, _SUSPECT[dtype]
        )


def _doubled(tensor: torch.Tensor) -> torch.Tensor:
    return converted(tensor, torch.float64)


def _error_of(check: Callable[[Sequence[str]], Fault | None], chosen: Sequence[str]) -> str | None:
    return _told(check(chosen))


def _told(fault: Fault | None) -> str | None:
    return None if fault is None else f"{fault.module or 'the model'} {fault.error}"


def _largest_working(
    names: Sequence[str], error_of: Callable[[Sequence[str]], str | None], kind_of: Callable[[str], str]
) -> tuple[set[str], dict[str, str]]:
    """A set of names that works and, as far as halving shows, is maximal; and the errors of the others.

    Names of one kind (the same layer of every block) are adjacent. Once `_ENOUGH` of a kind have failed one by one,
    parts with only this kind are not tried any more, as a deep model has many equal blocks.
    """
    working: list[str] = []
    errors: dict[str, str] = {}
    failed: dict[str, list[str]] = defaultdict(list)
    pending = [sorted(names, key=kind_of)]
    while pending:
        part = pending.pop()
        kinds = {kind_of(name) for name in part}
        alike = failed[kinds.pop()] if len(kinds) == 1 else []
        if len(alike) >= _ENOUGH:
            errors.update(dict.fromkeys(part, f"like {alike[0]}, {errors[alike[0]]}"))
            continue
        error = error_of(working + part) if part else None
        if error is None:
            working += part
        elif len(part) == 1:
            errors[part[0]] = error
            alike.append(part[0])
        else:
            middle = len(part) // 2
            pending += [part[middle:], part[:middle]]
    return set(working), errors


def _kind_of(name: str) -> str:
    """The name without its numbers: the same for the same layer of every block."""
    return re.sub(r"\d+", "#", name)


def _halves(analysis: Analysis, chosen: frozenset[str]) -> tuple[Mask, Mask]:
    """Two hard masks that each drop about half of the units of the chosen groups at random, and every unit once.

    The share differs between groups, so that sizes that are equal by chance become different.
    """
    one = np.ones(analysis.num_units, dtype=bool)
    other = one.copy()
    for number, group in enumerate(analysis.groups):
        if group.name in chosen:
            shuffled = group.first_unit + np.random.default_rng(number).permutation(group.num_units)
            middle = group.num_units // 2
            middle -= round(middle * 0.4 * ((number + 1) * 0.618 % 1))
            one[shuffled[:middle]] = False
            other[shuffled[middle:]] = False
    return one, other


def randomised_copy(model: nn.Module, inputs: ExampleInputs) -> nn.Module:
    """A copy in which wrong channels show: with random weights of ordinary size, or its own if those overflow."""
    copied = copy_with(model).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in copied.parameters():
            drawn = torch.empty(parameter.shape, dtype=torch.float32)
            if parameter.dim() >= 2:
                bound = math.sqrt(3 / max(parameter.shape[1:].numel(), 1))  # variance 1 / fan-in
                drawn.uniform_(-bound, bound, generator=generator)
            else:
                drawn.uniform_(0.5, 1.0, generator=generator)  # scales and biases, away from zero
            parameter.copy_(drawn)
    try:
        with Widely(torch.float32):
            outputs = outputs_of(copied.float(), random_like(inputs))
    except Exception as reason:  # a foreign forward may raise anything
        logger.info("the model does not run in single precision: %s", reason)
        return copied.double()
    return copied if all(torch.isfinite(t).all() for t in outputs) else copy_with(model).float()
