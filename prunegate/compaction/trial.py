"""A trial of the surgery before any training: which channel groups can really be cut."""

from __future__ import annotations

import copy
import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from prunegate.compaction.certificate import TOLERANCE, difference, outputs_of, random_like
from prunegate.compaction.plan import Mask, Plan
from prunegate.compaction.surgery import cut
from prunegate.gates import install_sites
from prunegate.groups import Analysis, ExampleInputs, Pin, copy_with, fake, shadow

logger = logging.getLogger(__name__)

# So many of a kind have to fail one by one before the rest of them are refused untried.
_ENOUGH = 2


def failing_groups(model: nn.Module, inputs: ExampleInputs, analysis: Analysis) -> dict[str, Pin]:
    """Channel groups whose removal breaks the model, or makes it compute something else.

    A random half of all units is cut and the copy is run: on fake tensors, to see that all shapes fit, and
    then on noise of the inputs' form, to compare with the masked model; there the other half is tried as
    well, so that every unit has been out once. Values are compared in float64 and under random weights: deep
    layers shrink a wrong channel below what float32 can tell from rounding, and a branch that a
    fresh model scales by zero or by 1e-6 hides every mistake inside it. If that fails, halves of the list
    of groups are added to what works as long as it keeps working, so that few runs find the culprits.
    """
    names = [group.name for group in analysis.groups]
    refused: dict[str, Pin] = {}
    checks: list[tuple[_Check, nn.Module]] = [(_shape_error, model)]
    if not _has_no_values(model, inputs):
        checks.append((_value_error, _telling_copy(model, inputs)))
    for check, subject in checks:

        def error_of(chosen: Sequence[str], check: _Check = check, subject: nn.Module = subject) -> str | None:
            one, other = _halves(analysis, frozenset(chosen))
            error = check(subject, inputs, analysis, one)
            return check(subject, inputs, analysis, other) if error is None and check is _value_error else error

        _, errors = _largest_working([name for name in names if name not in refused], error_of, _kind_of)
        refused.update({name: Pin(f"cutting it breaks the model: {error}") for name, error in errors.items()})
    if refused:
        logger.info("%d channel groups cannot be cut and are pinned", len(refused))
    return refused


_Check = Callable[[nn.Module, ExampleInputs, Analysis, Mask], "str | None"]


def _largest_working(
    names: Sequence[str], error_of: Callable[[Sequence[str]], str | None], kind_of: Callable[[str], str]
) -> tuple[set[str], dict[str, str]]:
    """Names that work together and that, as far as halving shows, no further name can join; and what failed.

    Names of one kind (the same layer of every block) stand together. Where `_ENOUGH` of a kind have failed
    one by one, the parts that hold nothing else are not tried any more: a deep model has many like blocks.
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
    """Two hard masks that each drop a random half of the units of the chosen groups, and every unit once."""
    one = np.ones(analysis.num_units, dtype=bool)
    other = one.copy()
    for number, group in enumerate(analysis.groups):
        if group.name in chosen:
            shuffled = group.first_unit + np.random.default_rng(number).permutation(group.num_units)
            one[shuffled[: group.num_units // 2]] = False
            other[shuffled[group.num_units // 2 :]] = False
    return one, other


def _shape_error(model: nn.Module, inputs: ExampleInputs, analysis: Analysis, keep: Mask) -> str | None:
    """What goes wrong when the model is cut and run without arithmetic; None if nothing does."""
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    copied = shadow(model, fake_mode).eval()
    arguments = inputs.map(lambda t: fake(t, fake_mode))
    try:
        with _quiet(), fake_mode, torch.no_grad():
            cut(copied, Plan.of(analysis, keep))
            copied(*arguments.args, **arguments.kwargs)
    except Exception as error:  # a foreign forward may raise anything
        return _told(error)
    return None


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's own report of every operation that fails on fake tensors: here some may."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _value_error(model: nn.Module, inputs: ExampleInputs, analysis: Analysis, keep: Mask) -> str | None:
    """How far the cut model's outputs are from the masked model's; None if they agree."""
    masked, compact = (copy_with(model, lambda tensor: tensor) for _ in range(2))
    install_sites(masked, analysis.sites, analysis.num_units).spread(torch.from_numpy(keep).float())
    cut(compact, Plan.of(analysis, keep))
    try:
        apart = difference(masked, compact, [random_like(inputs)], torch.float64).max_rel
    except Exception as error:  # fused kernels ask for more than the shapes that fake tensors see
        return _told(error)
    if apart <= TOLERANCE[torch.float64]:
        return None
    return f"the outputs differ by {apart:.1g} (relative) from those of the masked model"


def _telling_copy(model: nn.Module, inputs: ExampleInputs) -> nn.Module:
    """A copy in which a wrong channel shows: random weights of ordinary size, or its own if those overflow."""
    copied = copy.deepcopy(model).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in copied.parameters():
            drawn = torch.rand(parameter.shape, generator=generator)
            if parameter.dim() >= 2:
                drawn = (2 * drawn - 1) * math.sqrt(3 / max(parameter[0].numel(), 1))  # variance 1 / fan-in
            else:
                drawn = drawn / 2 + 0.5  # scales and biases alike, clear of zero
            parameter.copy_(drawn)
    arguments = random_like(inputs).map(lambda t: t.double() if t.is_floating_point() else t)
    if all(torch.isfinite(t).all() for t in outputs_of(copied, arguments)):
        return copied
    return copy.deepcopy(model).double()


def _has_no_values(model: nn.Module, inputs: ExampleInputs) -> bool:
    return any(t.is_meta for t in (*model.parameters(), *model.buffers(), *inputs.tensors()))
