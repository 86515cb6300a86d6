"""Units that are tied independently of choices, and the choices made for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunegate.groups.solving.choices import finest
from prunegate.groups.solving.constraints import Constraints
from prunegate.groups.solving.partition import Ids, Partition
from prunegate.groups.solving.whole_axes import AlikeAxes, elements_of


@dataclass(frozen=True)
class United:
    """Units that are kept or removed together, independently of choices.

    Attributes:
        element_of: The element of each id; see `prunegate.groups.solving.whole_axes`.
        alike: The axes, by elements.
        partition: Partition of the elements.
        num_ties: Number of ties that were processed.
    """

    element_of: Ids
    alike: list[AlikeAxes]
    partition: Partition
    num_ties: int


def united_by(constraints: Constraints) -> United:
    """The units united by all ties of a record."""
    element_of, alike = elements_of(constraints.axes, constraints.alike)
    partition = Partition(sum(axes.length for axes in alike))
    unite(partition, element_of, constraints.ties)
    return United(element_of, alike, partition, len(constraints.ties))


def unite(partition: Partition, element_of: Ids, ties: Sequence[tuple[Ids, Ids]]) -> None:
    if ties:
        left, right = (element_of[np.concatenate(side)] for side in zip(*ties, strict=True))
        partition.unite(left, right)


def ways_of(constraints: Constraints, united: United, whole_heads: frozenset[str] | None) -> list[int]:
    """For each choice the way by which, with the others' ways, most channels can go, in most units.

    Args:
        whole_heads: Modules whose attention is to lose whole heads; None for all of them.
    """
    if not constraints.choices:
        return []
    return finest(constraints, united.element_of, united.partition, whole_heads)
