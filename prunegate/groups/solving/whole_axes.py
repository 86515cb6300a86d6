"""Axes that are tied as a whole, index by index; most ties of a model are, and they are solved axis by axis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from prunegate.groups.solving.constraints import LabelledAxis
from prunegate.groups.solving.partition import Ids


@dataclass
class AlikeAxes:
    """Axes that hold the same units in the same order, each unit as one *element*.

    Attributes:
        first_element, length: The elements of each axis, which are consecutive.
        stored: The axes that belong to stored tensors, by index among the stored ones, ascending.
    """

    first_element: int
    length: int
    stored: list[int]


def elements_of(axes: Sequence[LabelledAxis], pairs: Iterable[tuple[int, int]]) -> tuple[Ids, list[AlikeAxes]]:
    """Number the ids; ids that are tied through whole axes get the same number, in the order of the smallest.

    Args:
        axes: All axes, which hold all ids in order.
        pairs: Pairs of tied axes of equal length, by number.

    Returns:
        The element of each id, and the sets of axes.
    """
    leaders = list(range(len(axes)))

    def leader_of(axis: int) -> int:
        while leaders[axis] != axis:
            leaders[axis] = axis = leaders[leaders[axis]]
        return axis

    for left, right in pairs:
        first, second = leader_of(left), leader_of(right)
        leaders[max(first, second)] = min(first, second)

    results: dict[int, AlikeAxes] = {}
    offsets = []
    elements = stored = 0
    for number, axis in enumerate(axes):
        leader = leader_of(number)
        if leader == number:
            results[leader] = AlikeAxes(elements, axis.length, [])
            elements += axis.length
        if axis.kind != "constant":
            results[leader].stored.append(stored)
            stored += 1
        offsets.append(axis.start - results[leader].first_element)
    ids = np.arange(axes[-1].start + axes[-1].length if axes else 0, dtype=np.int64)
    if axes:
        ids -= np.repeat(offsets, [axis.length for axis in axes])
    return ids, list(results.values())
