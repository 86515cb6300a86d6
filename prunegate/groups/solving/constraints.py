"""What running the model says about its channels, collected as plain data and solved once at the end.

Following the model (`tracer`, `rules`) only appends here; nothing is decided before the whole run
has been seen. `solve` then turns the collection into channel groups.
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

# What the ways of a choice ask for, by the names of the lists that it is noted in.
_ASKED = ("pins", "ties", "consumed", "masked", "needed")
# The name of axes along which one entry has become many.
SPREAD = "spread"
# And of axes that stand for the heads of an attention once their width is summed.
HEADS = "heads"


@dataclass(frozen=True)
class Pin:
    """Why a set of channels cannot be removed, and where that was seen."""

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


@dataclass(slots=True)  # never changed; frozen ones are slower to make, and there are many
class LabelledAxis:
    """One dimension of one parameter, buffer or constant, and the ids given to its indices."""

    kind: Literal["parameter", "buffer", "constant"]
    tensor: str
    axis: int
    start: int
    length: int
    ndim: int = 1


@dataclass(frozen=True)
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
    """A tensor argument of a function call in the model whose removed units must not count there.

    ``label`` broadcasts over the argument.
    """

    address: CallAddress
    place: int
    label: Ids


@dataclass
class Constraints:
    """The append-only record that tracing makes.

    ``consumed`` pairs the parameter that reads units with their ids; its name is empty where a masked
    argument reads them. ``choices`` are the operations that can lose units in several ways; see `either`. ``alike`` are
    ties of whole axes, index by index, by their numbers in ``axes``: most are, and to solve them takes no work for each
    index. ``needed`` pairs the ids along which a statistic is taken with how many of them it needs: an unbiased
    variance divides by one less than their number. ``multiples`` pairs ids with what their number is best a multiple
    of, for kernels that take no other widths.
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
        """Fresh ids, shape (length,), for the indices of a tensor's dimension; none are noted for one of length 0."""
        if length == 0:
            return np.zeros(0, dtype=np.int64)
        ids = np.arange(self.size, self.size + length, dtype=np.int64)
        self._number[id(ids)] = len(self.axes)
        self._ids.append(ids)
        self.axes.append(LabelledAxis(kind, tensor, axis, self.size, length, ndim))
        self.size += length
        return ids

    def either(self, kind: ChoiceKind, module: str, *ways: tuple[bool, Callable[[], Ids | None]]) -> None:
        """Note that an operation can lose units in several ways.

        Args:
            ways: The one first that the operation would take by itself. For each whether places go within heads or
                groups that stay, and a function that notes what the operation asks for then, and gives the ids of such
                places where other operations are to know of them.
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
        """All that is asked for once each choice has been made: by the number of its way."""
        ways = [choice.ways[number] for choice, number in zip(self.choices, chosen, strict=True)]
        asked: dict[str, Any] = {
            name: [*getattr(self, name), *(x for way in ways for x in way.asks[name])] for name in _ASKED
        }
        return replace(self, **asked)

    def mark(self) -> tuple[int, ...]:
        """Where the record stands now, for `back_to`."""
        return (*map(len, self._lists()), len(self.grids), self.size)

    def back_to(self, mark: tuple[int, ...]) -> None:
        """Forget what was noted since a mark: the run that said it came to nothing."""
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
        """Whether no id was given to a weight: they come from buffers and constants of the code.

        Args:
            with_vectors: Whether those count as well that come from vectors, or from one entry that became many.
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
        """Whether a label stands for one entry that became many: the tensor is the same for all of these units."""
        first = int(label.reshape(-1)[0])
        axis = self.axes[bisect_right(self.axes, first, key=lambda axis: axis.start) - 1]
        return axis.tensor == SPREAD and np.array_equal(label.reshape(-1), np.arange(axis.length) + axis.start)

    def pinned_ids(self, length: int, pin: Pin) -> Ids:
        """Fresh ids, shape (length,), that stand for channels nobody may remove."""
        ids = self.new_axis("constant", "", 0, length)
        self.pins.append((ids, pin))
        return ids

    def tie(self, left: Ids, right: Ids) -> None:
        """Make the units of two broadcastable labels live and die together, entry by entry."""
        if left is right:
            return
        if left.size == right.size and not self._apart:
            first, second = self._whole_axis(left), self._whole_axis(right)
            if first is not None and second is not None and _lie_alike(left, right):
                self.alike.append((first, second))
                return
        if left.shape != right.shape:
            left, right = np.broadcast_arrays(left, right)
        self.ties.append((left.reshape(-1), right.reshape(-1)))

    def _whole_axis(self, label: Ids) -> int | None:
        """The number of the axis whose ids these are: all of them, in order."""
        owner = label if label.base is None else label.base
        number = self._number.get(id(owner))
        if number is None or label.size != self._ids[number].size or not label.flags.c_contiguous:
            return None
        return number

    def tie_along(self, label: Ids, dim: int) -> Ids:
        """Tie all entries that differ only in their place along ``dim``; give one that stands for them."""
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
        """Ask that what is removed from a label over several dimensions is whole slices of one of them."""
        if len(varying(label)) > 1:
            squeezed = np.ascontiguousarray(label.reshape([s for s in label.shape if s > 1]))
            self.grids.setdefault((squeezed.shape, squeezed.tobytes()), squeezed)


def _lie_alike(left: Ids, right: Ids) -> bool:
    """Whether two labels of equal size meet entry by entry when they are broadcast, as flat arrays would."""
    ndim = max(left.ndim, right.ndim)
    return align(left, ndim).shape == align(right, ndim).shape
