"""Constraints on channels from running the model, collected as plain data and solved once at the end.

Tracing (`tracer`, `rules`) only appends constraints; nothing is decided before the whole run is known. `solve` then
turns them into channel groups.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from prunegate.groups.following.code_places import CodePlace
from prunegate.groups.following.watch import CallAddress
from prunegate.groups.solving.advice import advice_for
from prunegate.groups.solving.choices import Choice, ChoiceKind, Way
from prunegate.groups.solving.labels import Labels, Shape, align, varying
from prunegate.groups.solving.partition import Ids

# The constraints that the ways of a choice may have, by the names of their lists.
_ASKED = ("pins", "ties", "consumed", "masked", "needed")
# The name of axes along which one entry has become many.
SPREAD = "spread"
# The name of axes for the heads of an attention after their width is summed.
HEADS = "heads"


@dataclass(frozen=True)
class Pin:
    """Why a set of channels cannot be removed, and where."""

    reason: str
    operation: str = ""
    module: str = ""
    source: str = ""

    @property
    def advice(self) -> str:
        """What a user can do about it."""
        return advice_for(self.reason)

    def __str__(self) -> str:
        place = self.module or "the model"
        operation = f" ({self.operation})" if self.operation else ""
        source = f" at {self.source}" if self.source else ""
        return f"{place}{operation}{source}: {self.reason}"


@dataclass(slots=True)  # never changed; frozen dataclasses are slower to create, and there are many
class LabelledAxis:
    """One dimension of one parameter, buffer or constant, and the ids given to its indices."""

    kind: Literal["parameter", "buffer", "constant"]
    tensor: str
    axis: int
    start: int
    length: int
    ndim: int = 1


@dataclass(slots=True)  # never changed, like `LabelledAxis`
class Contraction:
    """A multiply-accumulate loop nest: ``sizes`` are its loops, ``labels`` broadcast over them.

    MACs are the product of the loop lengths; a removed unit shortens the loop its label varies on.
    """

    module: str
    operation: str
    sizes: Shape
    labels: Labels


@dataclass(frozen=True)
class MaskedArgument:
    """A tensor argument of a function call whose removed units must be masked.

    ``label`` broadcasts over the argument.
    """

    address: CallAddress
    place: int
    label: Ids


@dataclass
class Constraints:
    """The append-only record of tracing.

    ``consumed`` pairs the parameter that reads units with their ids; its name is empty if a masked argument reads them.
    ``choices`` are the operations that can lose units in several ways; see `either`. ``alike`` are ties of whole axes,
    index by index, by their numbers in ``axes``: most ties are, and solving them needs no work per index. ``needed``
    pairs the ids along which a statistic is taken with the number of ids that it needs: an unbiased variance divides by
    one less than this number. ``multiples`` pairs ids with the preferred multiple of their number, for kernels that
    support no other widths.
    """

    axes: list[LabelledAxis] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    consumed: list[tuple[str, Ids]] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    head_places: list[tuple[str, Ids]] = field(default_factory=list)
    masked: list[MaskedArgument] = field(default_factory=list)
    produced: list[Ids] = field(default_factory=list)
    pins: list[tuple[Ids, Pin]] = field(default_factory=list)
    ties: list[tuple[Ids, Ids]] = field(default_factory=list)
    alike: list[tuple[int, int]] = field(default_factory=list)
    needed: list[tuple[Ids, int]] = field(default_factory=list)
    multiples: list[tuple[Ids, int]] = field(default_factory=list)
    totals: dict[tuple[str, str, CodePlace | None], int] = field(default_factory=dict)
    grids: dict[tuple[Shape, bytes], Ids] = field(default_factory=dict)
    size: int = 0
    _apart: bool = False
    _ids: list[Ids] = field(default_factory=list)
    _number: dict[int, int] = field(default_factory=dict)

    def new_axis(
        self, kind: Literal["parameter", "buffer", "constant"], tensor: str, axis: int, length: int, ndim: int = 1
    ) -> Ids:
        """Fresh ids, shape (length,), for the indices of a tensor's dimension; none are recorded for length 0."""
        if length == 0:
            return np.zeros(0, dtype=np.int64)
        ids = np.arange(self.size, self.size + length, dtype=np.int64)
        self._number[id(ids)] = len(self.axes)
        self._ids.append(ids)
        self.axes.append(LabelledAxis(kind, tensor, axis, self.size, length, ndim))
        self.size += length
        return ids

    def either(self, kind: ChoiceKind, module: str, *ways: tuple[bool, Callable[[], Ids | None]]) -> None:
        """Record that an operation can lose units in several ways.

        Args:
            ways: The default way first. For each, whether positions within heads or groups are removed, and a function
                that records the constraints of the way, and returns the ids of these positions if other operations need
                them.
        """
        choice = Choice(kind, module)
        for is_inner, note in ways:
            kept = {name: getattr(self, name) for name in _ASKED}
            vars(self).update({name: [] for name in _ASKED})
            self._apart = True
            try:
                places = note()
                choice.ways.append(Way(is_inner, {name: getattr(self, name) for name in _ASKED}, places))
            finally:
                vars(self).update(kept)
                self._apart = False
        self.choices.append(choice)

    def settled(self, chosen: Sequence[int]) -> Constraints:
        """All constraints after each choice is made, given by the index of its way."""
        ways = [choice.ways[number] for choice, number in zip(self.choices, chosen, strict=True)]
        asked: dict[str, Any] = {
            name: [*getattr(self, name), *(x for way in ways for x in way.asks[name])] for name in _ASKED
        }
        return replace(self, **asked)

    def mark(self) -> tuple[int, ...]:
        """The current position of the record, for `back_to`."""
        return (*map(len, self._lists()), len(self.grids), self.size)

    def back_to(self, mark: tuple[int, ...]) -> None:
        """Drop everything recorded since a mark, because the run failed."""
        for noted, length in zip(self._lists(), mark, strict=False):
            del noted[length:]
        for key in list(self.grids)[mark[-2] :]:
            del self.grids[key]
        for ids in self._ids[len(self.axes) :]:
            del self._number[id(ids)]
        del self._ids[len(self.axes) :]
        self.size = mark[-1]

    def _lists(self) -> tuple[list[Any], ...]:
        return (self.axes, self.contractions, self.consumed, self.choices, self.head_places, self.masked, self.produced,
                self.pins, self.ties, self.alike, self.needed, self.multiples)  # fmt: skip

    def is_table(self, label: Ids, with_vectors: bool) -> bool:
        """Whether no id belongs to a weight: all come from buffers and constants of the code.

        Args:
            with_vectors: Whether ids also count that come from vectors, or from one entry that was expanded.
        """
        ids = label.reshape(-1)
        while ids.size:
            axis = self.axes[bisect_right(self.axes, int(ids[0]), key=lambda axis: axis.start) - 1]
            is_vector = axis.tensor == SPREAD or (axis.kind == "parameter" and axis.ndim == 1)
            if axis.tensor == HEADS or (axis.kind == "parameter" and axis.ndim > 1) or (is_vector and not with_vectors):
                return False
            ids = ids[(ids < axis.start) | (ids >= axis.start + axis.length)]
        return True

    def is_spread(self, label: Ids) -> bool:
        """Whether a label represents one expanded entry, so that the tensor is the same for all of these units."""
        first = int(label.reshape(-1)[0])
        axis = self.axes[bisect_right(self.axes, first, key=lambda axis: axis.start) - 1]
        return axis.tensor == SPREAD and np.array_equal(label.reshape(-1), np.arange(axis.length) + axis.start)

    def pinned_ids(self, length: int, pin: Pin) -> Ids:
        """Fresh ids, shape (length,), for channels that must not be removed."""
        ids = self.new_axis("constant", "", 0, length)
        self.pins.append((ids, pin))
        return ids

    def tie(self, left: Ids, right: Ids) -> None:
        """Require that the units of two broadcastable labels are kept or removed together, entry by entry."""
        if left is right:
            return
        if left.size == right.size and not self._apart:
            first, second = self._whole_axis(left), self._whole_axis(right)
            if first is not None and second is not None and _lie_alike(left, right):
                self.alike.append((first, second))
                return
        if left.shape != right.shape:
            left, right = np.broadcast_arrays(left, right)
        self.ties.append(_first_period(left.reshape(-1), right.reshape(-1)))

    def _whole_axis(self, label: Ids) -> int | None:
        """The number of the axis whose ids these are: all of them, in order."""
        owner = label if label.base is None else label.base
        number = self._number.get(id(owner))
        if number is None or label.size != self._ids[number].size or not label.flags.c_contiguous:
            return None
        return number

    def tie_along(self, label: Ids, dim: int) -> Ids:
        """Tie all entries that differ only in their index along ``dim``; return one that represents them."""
        if label.shape[dim] == 1:
            return label
        first = label.take([0], axis=dim)
        self.tie(label, first)
        return first

    def pin(self, ids: Ids, pin: Pin) -> None:
        """Forbid the removal of every unit among ``ids``."""
        if ids.size:
            self.pins.append((ids.reshape(-1), pin))

    def require_rectangular(self, label: Ids) -> None:
        """Require that only whole slices along one dimension are removed from a label over several dimensions."""
        if len(varying(label)) > 1:
            squeezed = np.ascontiguousarray(label.reshape([s for s in label.shape if s > 1]))
            self.grids.setdefault((squeezed.shape, squeezed.tobytes()), squeezed)


# Shorter ties are not worth the look.
_LONG = 1024


def _first_period(left: Ids, right: Ids) -> tuple[Ids, Ids]:
    """The first of the repeated parts of a tie: samples and windows have the same heads again and again."""
    if left.size < _LONG:
        return left, right
    period = int(np.argmax(left[1:] == left[0])) + 1  # 1 if the first is never repeated
    if left.size % period:
        return left, right
    for side in (left, right):
        parts = side.reshape(-1, period)
        if not (parts[1:] == parts[0]).all():
            return left, right
    return left[:period], right[:period]


def _lie_alike(left: Ids, right: Ids) -> bool:
    """Whether broadcasting two labels of equal size pairs their entries like flat arrays."""
    ndim = max(left.ndim, right.ndim)
    return align(left, ndim).shape == align(right, ndim).shape
