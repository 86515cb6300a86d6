"""A trial of the surgery before any training: which channel groups can really be cut."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from prunegate.compaction.plan import Plan
from prunegate.compaction.surgery import cut
from prunegate.groups import Analysis, ExampleInputs, Pin, shadow

logger = logging.getLogger(__name__)


def failing_groups(model: nn.Module, inputs: ExampleInputs, analysis: Analysis) -> dict[str, Pin]:
    """Channel groups whose removal breaks the model, found by cutting a copy on fake tensors and running it.

    All groups are tried at once. If that fails, halves of the list are added to what works as long as it
    keeps working, so that few runs find the culprits.
    """
    names = [group.name for group in analysis.groups]
    errors: dict[str, str] = {}

    def works(chosen: Sequence[str]) -> bool:
        error = _error_without(model, inputs, analysis, frozenset(chosen))
        if error is not None and chosen:
            errors[chosen[-1]] = error
        return error is None

    working = _largest_working(names, works)
    failing = [name for name in names if name not in working]
    if failing:
        logger.info("%d channel groups cannot be cut and are pinned", len(failing))
    return {name: Pin(f"cutting it breaks the model: {errors.get(name, 'see the log')}") for name in failing}


def _largest_working(names: Sequence[str], works: Callable[[Sequence[str]], bool]) -> set[str]:
    """A set of names that works together and that (as far as halving shows) no further name can join."""
    working: list[str] = []
    pending = [list(names)]
    while pending:
        part = pending.pop()
        if not part or works(working + part):
            working += part
        elif len(part) > 1:
            middle = len(part) // 2
            pending += [part[middle:], part[:middle]]
    return set(working)


def _error_without(
    model: nn.Module, inputs: ExampleInputs, analysis: Analysis, chosen: frozenset[str]
) -> str | None:
    """What goes wrong when about half of the units of the chosen groups are cut; None if nothing does."""
    keep = np.ones(analysis.num_units, dtype=bool)
    for group in analysis.groups:
        if group.name in chosen:
            keep[group.first_unit + (group.num_units + 1) // 2 : group.units.stop] = False
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    copied = shadow(model, fake_mode).eval()
    arguments = inputs.map(lambda t: fake_mode.from_tensor(t.detach()))
    try:
        with fake_mode:
            cut(copied, Plan.of(analysis, keep))
            copied(*arguments.args, **arguments.kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None
