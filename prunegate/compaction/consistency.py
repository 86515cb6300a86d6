"""Checks that a stored plan is one that compaction could have produced for the model; nothing in it is trusted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from torch import nn

from prunegate.compaction.cut_sizes import CutSizes
from prunegate.compaction.feature_sizes import TOLD
from prunegate.compaction.fix_ups import FixUps
from prunegate.compaction.held_sizes import held
from prunegate.compaction.plan import AttributeValue, Mask, Plan
from prunegate.compaction.size_attributes import follows
from prunegate.errors import CompactionError
from prunegate.groups import Analysis, ExampleInputs, Trace


def followed(dense: nn.Module, plan: Plan, fix_ups: FixUps, inputs: ExampleInputs) -> tuple[Trace, Analysis, Mask]:
    """A fresh analysis of the dense model, and the units that the plan keeps.

    Raises:
        TraceError: The model does not run on these inputs.
        CompactionError: The plan removes something other than whole units.
    """
    trace = Trace(dense, inputs)
    whole_heads = None if fix_ups.whole_heads is None else frozenset(fix_ups.whole_heads)
    analysis = trace.analysis(whole_heads=whole_heads)
    try:
        return trace, analysis, kept_units(analysis, plan)
    except CompactionError as error:
        reason = error
    # Up to format 1.1, units were chosen for each operation separately, and files do not always say which attention
    # lost whole heads.
    split = trace.split_heads(analysis, whole_heads)
    otherwise = frozenset(module for module, names in split.items() if not _has_units(analysis, plan, names))
    others = [(whole_heads, False)]
    if fix_ups.is_plain and not fix_ups.whole_heads:
        others += [(heads, finest) for heads in (otherwise, trace.attentions()) for finest in (True, False)]
    for heads, finest in dict.fromkeys(others):
        analysis = trace.analysis(whole_heads=heads, finest=finest)
        try:
            return trace, analysis, kept_units(analysis, plan)
        except CompactionError:
            continue
    raise reason


def _has_units(analysis: Analysis, plan: Plan, names: Iterable[str]) -> bool:
    units = {group.name: group.num_units for group in analysis.groups}
    return all(plan.num_units.get(name) == units[name] for name in names)


def kept_units(analysis: Analysis, plan: Plan) -> Mask:
    """The units that a plan keeps, shape (units,), if its masks remove exactly whole units.

    Raises:
        CompactionError: They do not; the message names the tensor or channel group.
    """
    keep = np.ones(analysis.num_units, dtype=bool)
    for name, axes in plan.tensors.items():
        for axis, mask in axes.items():
            units = analysis.axes.get(name, {}).get(axis)
            if units is None or len(units) != len(mask) or (units[~mask] < 0).any():
                raise _changed(f"{name}: axis {axis}: loses positions that belong to no channel group")
            keep[units[~mask]] = False
    expected = Plan.of(analysis, keep)
    for name in dict.fromkeys((*plan.tensors, *expected.tensors)):
        axes, wanted = plan.tensors.get(name, {}), expected.tensors.get(name, {})
        for axis in axes.keys() | wanted.keys():
            if axis not in axes or axis not in wanted or not np.array_equal(axes[axis], wanted[axis]):
                raise _changed(f"{name}: axis {axis}: does not lose the same units as the rest of its channel group")
    for name, kept in plan.kept.items():
        if plan.num_units[name] != expected.num_units.get(name):
            raise _changed(
                f"{name}: found {plan.num_units[name]} units, expected {expected.num_units.get(name, 'none')}"
            )
        if kept != expected.kept[name]:
            raise _changed(f"{name}: keeps other units than its tensors do")
    for group in analysis.groups:
        if group.name not in plan.kept and not keep[group.units].all():
            raise _changed(f"{group.name}: loses units although the plan does not list it")
    return keep


def _changed(what: str) -> CompactionError:
    return CompactionError(
        f"{what}. The plan was changed, or made for another model, or by a version of prunegate that finds other "
        "channel groups."
    )


def check_guesses(
    dense: Mapping[str, Mapping[str, object]],
    plan: Plan,
    derived: Mapping[str, Mapping[str, AttributeValue]],
    sizes: CutSizes | None,
) -> bool:
    """Check the attributes that do not follow from a layer's own tensors and are read by the model's code.

    Each has to change from the dense size of a cut dimension to its compact size.

    Args:
        dense: Values of these attributes before the cut.
        derived: The attributes that follow from tensors.
        sizes: The run of the dense model; None if it could not be followed.

    Returns:
        Whether there are any such attributes.

    Raises:
        CompactionError: An attribute is not such a size.
    """
    result = False
    for path, edits in plan.attributes.items():
        for name in edits.keys() - derived.get(path, {}).keys():
            old, new = held(dense[path], name), edits[name]
            if old == new:  # it follows channels that are all kept
                continue
            result = True
            if not isinstance(old, int) or not isinstance(new, int) or not _is_left(plan, sizes, path, name, old, new):
                raise CompactionError(
                    f"{path}.{name}: found {new!r} in place of {old!r}, expected the sizes of a tensor in the module "
                    "before and after the cut. The plan was changed, or made for another model."
                )
    return result


def _is_left(plan: Plan, sizes: CutSizes | None, path: str, name: str, old: int, new: int) -> bool:
    if sizes is None:
        return any(len(mask) == old and int(mask.sum()) == new for mask in _masks(plan))
    if follows(sizes, path, old, new):
        return True
    # Feature sizes that a model exposes may be those of any tensor, as its forward may not use them.
    shapes = sizes.tape.shapes
    return name in TOLD and any(
        old in shape and new in sizes.shape(number) and sizes.is_cut(number) for number, shape in enumerate(shapes)
    )


def _masks(plan: Plan) -> Iterator[Mask]:
    for axes in plan.tensors.values():
        yield from axes.values()
    for name, units in plan.kept.items():
        mask = np.zeros(plan.num_units[name], dtype=bool)
        mask[units] = True
        yield mask
