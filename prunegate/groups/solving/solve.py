"""From the constraints of a run to channel groups."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from prunegate.groups.analysis import Analysis
from prunegate.groups.channel_group import ChannelGroup, Member, PinnedGroup
from prunegate.groups.solving.constraints import Constraints, LabelledAxis, Pin
from prunegate.groups.solving.labels import Shape, collapse, varying
from prunegate.groups.solving.loop_nests import loop_nest, parameter_nest
from prunegate.groups.solving.masked_calls import masked_calls
from prunegate.groups.solving.partition import Ids, Partition
from prunegate.groups.solving.unit_kinds import by_axes_and_reason
from prunegate.groups.solving.united import United, unite, united_by

_UNPRODUCED = Pin("no layer produces these channels")
_UNREAD = Pin("no weight reads these channels")
_SINGLE = Pin("a single unit: at least one must be kept")
_NO_REASON = -1


def solve(
    constraints: Constraints,
    shapes: Mapping[str, Shape],
    parameters: Iterable[str],
    batch_size: int,
    unused: Iterable[str],
    refused: Mapping[str, Pin],
    chosen: Sequence[int] = (),
    united: United | None = None,
) -> Analysis:
    """Channel groups that satisfy all constraints.

    Args:
        shapes: Shape of every parameter and buffer.
        parameters: Those of them that count as parameters.
        unused: Parameters that the run never read.
        refused: Further groups, by name, that the caller pins (excluded by the user, or refused by the dry run).
        chosen: For each choice, the index of its way; see `ways_of`.
        united: The result of `united_by` for these constraints, if known.
    """
    united = united or united_by(constraints)
    constraints = constraints.settled(chosen)
    element_of, alike, partition = united.element_of, united.alike, united.partition.copy()
    unite(partition, element_of, constraints.ties[united.num_ties :])
    why = _first_pins(constraints, element_of, partition.size)
    _make_rectangular([element_of[grid] for grid in constraints.grids.values()], partition, why)
    pins = [pin for _, pin in constraints.pins]
    reasons = _reasons_by_root(constraints, element_of, partition, why, pins)

    stored = [axis for axis in constraints.axes if axis.kind != "constant"]
    result = by_axes_and_reason(alike, partition, reasons)
    groups, pinned, unit_of_root = _group_units(result, stored, pins, constraints, refused, partition.size)
    units_of = unit_of_root[partition.roots()][element_of]

    greatest = _over_axes(np.maximum, constraints, units_of)
    axes = _units_on_axes(constraints, units_of, greatest)
    return Analysis(
        groups=tuple(_with_members(groups, constraints, units_of, greatest, axes)),
        pinned=tuple(pinned),
        axes=axes,
        sites=_sites(constraints, stored, axes),
        shapes=dict(shapes),
        multiply_accumulates=tuple(loop_nest(c.module, c.sizes, c.labels, units_of) for c in constraints.contractions),
        parameters=tuple(parameter_nest(name, shapes[name], axes.get(name, {})) for name in parameters),
        batch_size=batch_size,
        unused=tuple(unused),
        masked_calls=tuple(masked_calls(constraints, units_of)),
        units_of=units_of,
    )


def _first_pins(constraints: Constraints, element_of: Ids, count: int) -> Ids:
    """For each element, the index of its first pin, or `_NO_REASON`."""
    why = np.full(count, _NO_REASON, dtype=np.int64)
    for number in range(len(constraints.pins) - 1, -1, -1):
        why[element_of[constraints.pins[number][0]]] = number
    return why


def _make_rectangular(grids: Sequence[Ids], partition: Partition, why: Ids) -> None:
    """Tie units until only whole slices along one dimension are removed from any tensor.

    Of the dimensions of a grid, the one with the most remaining classes is kept and the others are tied. Ties in one
    grid may coarsen another, so this is repeated until nothing changes.
    """
    changed = bool(grids)
    while changed:
        changed = False
        pinned = np.zeros(partition.size, dtype=bool)
        pinned[partition.roots(np.flatnonzero(why != _NO_REASON))] = True
        for grid in grids:
            roots = collapse(partition.roots(grid))
            if len(varying(roots)) < 2:
                continue
            best = max(varying(roots), key=lambda dim: _classes_along(roots, dim, pinned))
            rows = np.moveaxis(roots, best, 0).reshape(roots.shape[best], -1)
            changed |= partition.unite(rows.reshape(-1), np.repeat(rows[:, 0], rows.shape[1]))


def _classes_along(roots: Ids, dim: int, pinned: np.ndarray) -> int:
    """How many removable classes remain when everything but ``dim`` is tied."""
    rows = np.moveaxis(roots, dim, 0).reshape(roots.shape[dim], -1)
    names, local = np.unique(rows, return_inverse=True)
    local = local.reshape(rows.shape)
    tied = Partition(len(names))
    tied.unite(local.reshape(-1), np.repeat(local[:, 0], rows.shape[1]))
    stuck = np.unique(tied.roots(np.flatnonzero(pinned[names])))
    return len(np.unique(tied.roots())) - len(stuck)


def _reasons_by_root(constraints: Constraints, element_of: Ids, partition: Partition, why: Ids, pins: list[Pin]) -> Ids:
    """For each root, the first pin of its set or `_NO_REASON`; adds pins for channels that nothing makes or reads."""
    roots = partition.roots()
    first = np.full(partition.size, len(pins), dtype=np.int64)
    named = why != _NO_REASON
    np.minimum.at(first, roots[named], why[named])
    reasons = np.where(first == len(pins), _NO_REASON, first)
    for collected, pin in (
        (constraints.produced, _UNPRODUCED),
        ([ids for _, ids in constraints.consumed], _UNREAD),
    ):
        reached = np.zeros(partition.size, dtype=bool)
        for ids in collected:
            reached[roots[element_of[ids.reshape(-1)]]] = True
        reasons[(reasons == _NO_REASON) & ~reached] = len(pins)
        pins.append(pin)
    return reasons


def _group_units(
    results: Mapping[tuple[tuple[int, ...], int], Ids],
    stored: Sequence[LabelledAxis],
    pins: list[Pin],
    constraints: Constraints,
    refused: Mapping[str, Pin],
    num_elements: int,
) -> tuple[list[tuple[str, Ids]], list[PinnedGroup], Ids]:
    """Name the sets of units on the same axes, and number the free units."""
    producing = _producing_axes(stored, constraints)
    names: dict[str, int] = defaultdict(int)
    groups: list[tuple[str, Ids]] = []
    pinned: list[PinnedGroup] = []
    unit_of_root = np.full(num_elements, -1, dtype=np.int64)
    count = 0
    for (signature, reason), roots in sorted(results.items(), key=lambda item: (item[0][0], item[0][1])):
        named_by = next((i for i in signature if i in producing), signature[0])
        name = _group_name(stored[named_by].tensor)
        if reason != _NO_REASON and named_by not in producing:
            # Kernel positions, table rows and the like are not channels; only outputs of layers are reported.
            continue
        names[name] += 1
        if names[name] > 1:
            name = f"{name}#{names[name]}"
        pin = pins[reason] if reason != _NO_REASON else refused.get(name)
        if pin is None and len(roots) == 1:
            pin = _SINGLE
        if pin is not None:
            tensors = tuple(dict.fromkeys(stored[i].tensor for i in signature))
            pinned.append(PinnedGroup(name, len(roots), pin, tensors))
            continue
        unit_of_root[roots] = np.arange(count, count + len(roots))
        count += len(roots)
        groups.append((name, roots))
    return groups, pinned, unit_of_root


def _producing_axes(stored: Sequence[LabelledAxis], constraints: Constraints) -> set[int]:
    """The stored axes that hold the ids a contraction or an embedding produces."""
    if not stored or not constraints.produced:
        return set()
    starts = np.array([axis.start for axis in stored], dtype=np.int64)
    ends = starts + np.array([axis.length for axis in stored], dtype=np.int64)
    ids = np.concatenate([produced.reshape(-1) for produced in constraints.produced])
    numbers = np.searchsorted(starts, ids, side="right") - 1
    inside = (numbers >= 0) & (ids < ends[numbers])
    return set(np.flatnonzero(np.bincount(numbers[inside], minlength=len(stored))).tolist())


def _group_name(tensor: str) -> str:
    module, _, attribute = tensor.rpartition(".")
    return module if attribute in ("weight", "bias") and module else tensor


def _units_on_axes(constraints: Constraints, units_of: Ids, greatest: Sequence[int]) -> dict[str, dict[int, Ids]]:
    """For each stored tensor, the axes that hold units, with these units."""
    axes: dict[str, dict[int, Ids]] = defaultdict(dict)
    for axis, last in zip(constraints.axes, greatest, strict=True):
        if last >= 0 and axis.kind != "constant":
            axes[axis.tensor][axis.axis] = units_of[axis.start : axis.start + axis.length]
    return dict(axes)


def _over_axes(reduce: np.ufunc, constraints: Constraints, values: Ids) -> list[int]:
    """One number per axis, computed in bulk, as ids are issued axis by axis."""
    if not constraints.axes:
        return []
    results: list[int] = reduce.reduceat(values, [axis.start for axis in constraints.axes]).tolist()
    return results


def _with_members(
    groups: Sequence[tuple[str, Ids]],
    constraints: Constraints,
    units_of: Ids,
    greatest: Sequence[int],
    axes: Mapping[str, Mapping[int, Ids]],
) -> list[ChannelGroup]:
    """The groups with the tensor axes that hold their units.

    Units are numbered group by group, so an axis whose least and greatest units belong to one group holds no others.
    """
    bounds = np.cumsum([0, *(len(roots) for _, roots in groups)])
    members: list[list[Member]] = [[] for _ in groups]
    spans = [range(int(first), int(last)) for first, last in pairwise(bounds)]
    none = int(bounds[-1])  # greater than every unit
    least = _over_axes(np.minimum, constraints, np.where(units_of < 0, none, units_of))
    first_groups, last_groups = (np.searchsorted(bounds, units, side="right") - 1 for units in (least, greatest))
    for axis, first, last in zip(constraints.axes, first_groups.tolist(), last_groups.tolist(), strict=True):
        if last < 0 or axis.kind == "constant":
            continue
        units = axes[axis.tensor][axis.axis]
        between = [first] if first == last else _groups_among(units, bounds)
        for group in between:
            members[group].append(Member(axis.tensor, axis.axis, units, spans[group]))
    least, multiples = _least_units(constraints, units_of, bounds), _multiples(constraints, units_of, bounds)
    return [
        ChannelGroup(name, len(roots), int(bounds[number]), tuple(members[number]), least[number], multiples[number])
        for number, (name, roots) in enumerate(groups)
    ]


def _least_units(constraints: Constraints, units_of: Ids, bounds: Ids) -> list[int]:
    """The number of units of each group that have to be kept so that every statistic has enough entries."""
    least = [1] * (len(bounds) - 1)
    for ids, count in constraints.needed:
        units = units_of[ids.reshape(-1)]
        missing = count - int((units < 0).sum())
        present, entries = np.unique(units[units >= 0], return_counts=True)
        groups = np.searchsorted(bounds, present, side="right") - 1
        fewest = {group: int(entries[groups == group].min()) for group in np.unique(groups).tolist()}
        missing -= sum(least[group] * width for group, width in fewest.items())
        for group in sorted(fewest, key=lambda group: bounds[group] - bounds[group + 1]):  # the largest first
            if missing > 0:
                more = min(-(-missing // fewest[group]), int(bounds[group + 1] - bounds[group]) - least[group])
                least[group] += more
                missing -= more * fewest[group]
    return least


def _multiples(constraints: Constraints, units_of: Ids, bounds: Ids) -> list[int]:
    """The preferred multiple for each group's number of kept units."""
    result = [1] * (len(bounds) - 1)
    for ids, multiple in constraints.multiples:
        units = units_of[ids.reshape(-1)]
        present, entries = np.unique(units[units >= 0], return_counts=True)
        for group, count in zip(np.searchsorted(bounds, present, side="right") - 1, entries, strict=True):
            result[group] = math.lcm(result[group], multiple // math.gcd(multiple, int(count)))
    return result


def _groups_among(units: Ids, bounds: Ids) -> list[int]:
    """The groups of these units, ascending."""
    results: list[int] = np.unique(np.searchsorted(bounds, units[units >= 0], side="right") - 1).tolist()
    return results


def _sites(
    constraints: Constraints, stored: Sequence[LabelledAxis], axes: Mapping[str, Mapping[int, Ids]]
) -> dict[str, dict[int, Ids]]:
    """The parameter axes at which units are read."""
    by_tensor: dict[str, list[LabelledAxis]] = defaultdict(list)
    for axis in stored:
        by_tensor[axis.tensor].append(axis)
    sites: dict[str, dict[int, Ids]] = defaultdict(dict)
    for name, ids in constraints.consumed:
        if not name:
            continue
        low, high = int(ids.min()), int(ids.max())
        for axis in by_tensor[name]:
            if axis.start <= low and high < axis.start + axis.length and axis.axis in axes.get(name, {}):
                sites[name][axis.axis] = axes[name][axis.axis]
    return dict(sites)
