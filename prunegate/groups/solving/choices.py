"""Choices: operations that can lose units in several ways, and the search for the best combination of ways.

A grouped convolution can lose whole groups, or equally many channels from each; an attention can lose whole heads, or
the same dimensions in all of them. An operation cannot decide by itself which is finer: a norm after the convolution
may support only one of the two. So rules record all ways, and the solver takes the combination that lets the most
channels be removed, and among these the one with the most units.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from prunegate.groups.solving.partition import Ids, Partition

if TYPE_CHECKING:
    from prunegate.groups.solving.constraints import Constraints

# The kind of a choice: whole heads or head dimensions, whole groups of channels or positions within them.
ChoiceKind: TypeAlias = Literal["heads", "groups"]

# Up to this number, all combinations are tried.
_MOST_COMBINATIONS = 64


@dataclass
class Way:
    """The constraints of an operation if it loses units in one way: entries of the lists of `Constraints`, by name.

    Attributes:
        is_inner: Positions within heads or groups are removed, and the heads or groups are kept.
        places: For an attention, the ids of the head dimensions, if these are removed.
    """

    is_inner: bool
    asks: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    places: Ids | None = None


@dataclass
class Choice:
    """An operation that can lose units in several ways; the first is its default."""

    kind: ChoiceKind
    module: str
    ways: list[Way] = field(default_factory=list)

    def allowed(self, whole_heads: frozenset[str] | None) -> list[int]:
        """The indices of its ways, without those that the caller forbids (None: whole heads everywhere)."""
        whole = self.kind == "heads" and (whole_heads is None or self.module in whole_heads)
        return [number for number, way in enumerate(self.ways) if not (whole and way.is_inner)]


@dataclass
class _Alike:
    """Choices with the same constraints on the same units, so that one decision applies to all.

    Attributes:
        ways: For each allowed way, the sides of its ties, and the roots that it pins and reads.
        inner: For each way, whether positions within heads or groups are removed.
        members: The choices, each with the indices of its ways in the order of ``ways``.
    """

    ways: list[tuple[Ids, Ids, Ids, Ids]]
    inner: list[bool]
    members: list[tuple[int, list[int]]]

    @property
    def roots(self) -> Ids:
        return np.unique(np.concatenate([part for way in self.ways for part in way]))


def usual(constraints: Constraints, whole_heads: frozenset[str] | None = frozenset()) -> list[int]:
    """For each choice, the default way of its operation."""
    return [choice.allowed(whole_heads)[0] for choice in constraints.choices]


def finest(
    constraints: Constraints, element_of: Ids, partition: Partition, whole_heads: frozenset[str] | None = frozenset()
) -> list[int]:
    """For each choice the way by which, with the others' ways, most channels can go, in most units.

    Args:
        element_of: The element of each id; see `prunegate.groups.solving.whole_axes`.
        partition: Partition of the elements by the constraints that are independent of choices.
    """
    chosen = usual(constraints, whole_heads)
    root_of = partition.roots()[element_of]
    known = _what_is_known(constraints, element_of, partition)
    for component in _components(_alike(constraints, root_of, whole_heads)):
        best = _best(component, *known)
        for alike, number in zip(component, best, strict=True):
            for choice, numbers in alike.members:
                chosen[choice] = numbers[number]
    return chosen


def _what_is_known(
    constraints: Constraints, element_of: Ids, partition: Partition
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each root, whether it is not pinned, how many of its channels layers produce, and whether one reads it."""
    size, root_of = partition.size, partition.roots()[element_of]
    free, consumed, made = np.ones(size, bool), np.zeros(size, bool), np.zeros(len(element_of), bool)
    for ids, _ in constraints.pins:
        free[root_of[ids]] = False
    for _, ids in constraints.consumed:
        consumed[root_of[ids]] = True
    for ids in constraints.produced:
        made[ids] = True
    for axis in constraints.axes:
        if axis.kind == "constant":
            made[axis.start : axis.start + axis.length] = False
    produced = np.bincount(root_of[made], minlength=size)
    return free, produced, consumed


def _alike(constraints: Constraints, root_of: Ids, whole_heads: frozenset[str] | None) -> list[_Alike]:
    results: dict[Any, _Alike] = {}
    for number, choice in enumerate(constraints.choices):
        numbers = choice.allowed(whole_heads)
        ways = [_roots_of(choice.ways[n], root_of) for n in numbers]
        inner = [choice.ways[n].is_inner for n in numbers]
        key = (*inner, *(part.tobytes() for way in ways for part in way))
        results.setdefault(key, _Alike(ways, inner, [])).members.append((number, numbers))
    return list(results.values())


def _roots_of(way: Way, root_of: Ids) -> tuple[Ids, Ids, Ids, Ids]:
    ties = way.asks.get("ties", ())
    left, right = (root_of[_joined(side)] for side in (zip(*ties, strict=True) if ties else ((), ())))
    pairs = np.unique((left * len(root_of) + right)[left != right])  # equal for all samples and windows
    left, right = pairs // max(len(root_of), 1), pairs % max(len(root_of), 1)
    pinned, consumed = (
        np.unique(root_of[_joined(ids)])
        for ids in ([ids for ids, _ in way.asks.get("pins", ())], [ids for _, ids in way.asks.get("consumed", ())])
    )
    return left, right, pinned, consumed


def _joined(arrays: Iterable[Ids]) -> Ids:
    return np.concatenate([np.zeros(0, dtype=np.int64), *(ids.reshape(-1) for ids in arrays)])


def _components(choices: Sequence[_Alike]) -> Iterator[list[_Alike]]:
    """Choices that affect each other, because they concern the same units directly or through others."""
    of_each = [alike.roots for alike in choices]
    roots = np.concatenate([np.zeros(0, dtype=np.int64), *of_each])
    numbers = np.repeat(np.arange(len(choices)), [len(some) for some in of_each])
    order = np.argsort(roots, kind="stable")
    same = np.flatnonzero(roots[order][1:] == roots[order][:-1])
    links = Partition(len(choices))
    links.unite(numbers[order][same], numbers[order][same + 1])
    by_root: dict[int, list[_Alike]] = defaultdict(list)
    for number, root in enumerate(links.roots().tolist()):
        by_root[root].append(choices[number])
    yield from by_root.values()


def _best(component: Sequence[_Alike], free: np.ndarray, produced: np.ndarray, consumed: np.ndarray) -> Sequence[int]:
    """The way of each choice with which, in combination, the most channels can be removed, in the most units."""
    counts = [len(alike.ways) for alike in component]
    if max(counts) == 1:
        return [0] * len(component)
    roots = np.unique(np.concatenate([alike.roots for alike in component]))
    local = [[tuple(np.searchsorted(roots, part) for part in way) for way in alike.ways] for alike in component]
    state = free[roots], produced[roots], consumed[roots]

    def units(numbers: Sequence[int]) -> tuple[int, int]:
        return _removable([ways[number] for ways, number in zip(local, numbers, strict=True)], *state)

    if np.prod(counts, dtype=float) <= _MOST_COMBINATIONS:
        return max(product(*map(range, counts)), key=units)  # the first of equals
    starts = [[0] * len(component)]
    starts += [[a.inner.index(inner) if inner in a.inner else 0 for a in component] for inner in (False, True)]
    return _climbed(starts, counts, units)


def _climbed(
    starts: Sequence[list[int]], counts: Sequence[int], units: Callable[[Sequence[int]], tuple[int, int]]
) -> Sequence[int]:
    """Hill climbing from the best start: change one choice after the other as long as the result improves."""
    best = max(starts, key=units)
    most, changed = units(best), True
    while changed:
        changed = False
        for place, count in enumerate(counts):
            for number in range(count):
                other = [*best[:place], number, *best[place + 1 :]]
                left = units(other) if number != best[place] else most
                if left > most:
                    best, most, changed = other, left, True
    return best


def _removable(
    ways: Sequence[tuple[Ids, ...]], free: np.ndarray, produced: np.ndarray, consumed: np.ndarray
) -> tuple[int, int]:
    """How many channels can be removed, and in how many units."""
    partition = Partition(len(free))
    partition.unite(*(np.concatenate([way[side] for way in ways]) for side in (0, 1)))
    names = partition.roots()
    is_free, is_consumed = np.ones(len(free), bool), np.zeros(len(free), bool)
    is_free[names[~free]] = False
    channels = np.bincount(names, weights=produced, minlength=len(free))
    is_consumed[names[consumed]] = True
    for way in ways:
        is_free[names[way[2]]] = False
        is_consumed[names[way[3]]] = True
    channels[~(is_free & is_consumed)] = 0
    return int(channels.sum()), int((channels > 0).sum())
