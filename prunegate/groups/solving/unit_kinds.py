"""Units of one kind, on the same axes of stored tensors, found for all units in bulk."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np

from prunegate.groups.solving.partition import Ids, Partition
from prunegate.groups.solving.whole_axes import AlikeAxes


def by_axes_and_reason(
    alike: Sequence[AlikeAxes], partition: Partition, reasons: Ids
) -> dict[tuple[tuple[int, ...], int], Ids]:
    """The roots, ascending, grouped by their stored axes (by number, ascending) and reason.

    Sets of axes are first compared by a sum of random numbers, so that Python code handles each kind of unit instead of
    every unit.
    """
    alike = [axes for axes in alike if axes.stored]
    if not alike:
        return {}
    roots, numbers = _distinct_on_axes(alike, partition)
    # Sums of integers of this size are exact in floating point.
    codes = np.random.default_rng(0).integers(1, 1 << 38, size=len(alike)).astype(np.float64)
    sums = np.bincount(roots, weights=codes[numbers], minlength=len(reasons))
    present = np.flatnonzero(sums)
    order = np.lexsort((present, reasons[present], sums[present]))
    present = present[order]
    kind = np.stack([sums[present], reasons[present]])
    borders = np.flatnonzero(np.r_[True, (kind[:, 1:] != kind[:, :-1]).any(axis=0), True])
    place_of = np.full(len(reasons), -1, dtype=np.int64)
    place_of[present[borders[:-1]]] = np.arange(len(borders) - 1)
    places = place_of[roots]
    signatures: list[list[list[int]]] = [[] for _ in borders[:-1]]
    for place, number in zip(places[places >= 0].tolist(), numbers[places >= 0].tolist(), strict=True):
        signatures[place].append(alike[number].stored)
    return {
        (tuple(sorted(chain(*signature))), int(reasons[present[first]])): present[first:last]
        for signature, (first, last) in zip(signatures, pairwise(borders.tolist()), strict=True)
    }


def _distinct_on_axes(alike: Sequence[AlikeAxes], partition: Partition) -> tuple[Ids, Ids]:
    """The roots on every set of axes, each once, and the index of its set, ascending."""
    roots = np.concatenate([partition.roots()[axes.first_element : axes.first_element + axes.length] for axes in alike])
    numbers = np.repeat(np.arange(len(alike)), [axes.length for axes in alike])
    # Usually roots ascend along an axis, and then none is repeated.
    falls = np.flatnonzero((roots[1:] <= roots[:-1]) & (numbers[1:] == numbers[:-1]))
    if not falls.size:
        return roots, numbers
    unsorted = np.zeros(len(alike), dtype=bool)
    unsorted[numbers[falls]] = True
    clear = ~unsorted[numbers]
    pairs = np.unique(numbers[~clear] * partition.roots().size + roots[~clear])
    more_numbers, more_roots = np.divmod(pairs, partition.roots().size)
    roots, numbers = np.r_[roots[clear], more_roots], np.r_[numbers[clear], more_numbers]
    order = np.argsort(numbers, kind="stable")
    return roots[order], numbers[order]
