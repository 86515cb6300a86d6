"""The operations of a forward pass whose time depends on the number of kept units.

A cell is one operation of the tape with the views that prepare its operands, or one call of attention, for which torch
has kernels of its own. Its time depends on at most two widths, which are called factors: for a convolution, the number
of input and of output channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prunegate.groups import Analysis, Span, Tape, Value, function_name, map_values, values_in
from prunegate.groups.solving.labels import collapse
from prunegate.groups.solving.partition import Ids

# Operations whose time depends on two widths. All others move data, so only its amount counts.
CONTRACTIONS = frozenset(
    """aten::convolution aten::mm aten::addmm aten::bmm aten::baddbmm aten::_grouped_mm aten::_convolution
    aten::linear""".split()
)
# Functions that torch decomposes only while it is traced.
_WHOLE_CALLS = frozenset({"scaled_dot_product_attention"})


@dataclass(frozen=True)
class Factor:
    """A width on which the time of an operation depends.

    Attributes:
        axis: int64, the unit at each position of the axis, -1 for none.
        order: The units, in the order in which they are kept as the width grows.
    """

    axis: Ids
    order: Ids

    @property
    def size(self) -> int:
        """The dense width."""
        return len(self.axis)

    def counts(self, num_units: int) -> Ids:
        """How many positions each unit has, shape (units,)."""
        return np.bincount(self.axis[self.axis >= 0], minlength=num_units)

    def narrowed(self, width: int, num_units: int) -> tuple[npt.NDArray[np.bool_], int]:
        """Units to keep so that the width is at most ``width``, or that of one unit: (mask, the width)."""
        fixed = int((self.axis < 0).sum())
        sizes = fixed + np.cumsum(self.counts(num_units)[self.order])
        kept = max(1, int(np.searchsorted(sizes, width, side="right")))
        mask = np.ones(num_units, dtype=bool)
        mask[self.order[kept:]] = False
        return mask, int(sizes[kept - 1])


@dataclass(frozen=True)
class Cell:
    """One operation with the views before it.

    Attributes:
        signature: Equal for operations that take the same time at equal widths.
        views: Indices of operations of the tape that only change how operands are seen.
        operation: Index of the operation, or the call of a function.
        roots: Numbers of the tensors that it starts from.
        factors: At most two widths.
    """

    signature: str
    views: tuple[int, ...]
    operation: int | Span
    roots: tuple[int, ...]
    factors: tuple[Factor, ...]
    is_contraction: bool


def cells_of(tape: Tape, analysis: Analysis) -> list[Cell]:
    """The cells of a run, in order."""
    return list(_Cells(tape, analysis).all())


class _Cells:
    def __init__(self, tape: Tape, analysis: Analysis) -> None:
        self.tape, self.analysis = tape, analysis
        self.producer = {number: i for i, op in enumerate(tape.operations) for number in op.results}
        self.group = np.zeros(analysis.num_units, dtype=np.int64)
        self.rank = np.zeros(analysis.num_units)
        for index, group in enumerate(analysis.groups):
            self.group[group.units] = index
            self.rank[group.units] = (np.arange(group.num_units) + 0.5) / group.num_units

    def all(self) -> Iterator[Cell]:
        calls = [
            span
            for span in self.tape.spans
            if callable(span.target) and function_name(span.target) in _WHOLE_CALLS and span.last > span.first
        ]
        within = {i: span for span in calls for i in range(span.first, span.last)}
        for i, op in enumerate(self.tape.operations):
            call = within.get(i)
            if call is not None:
                cell = self._cell(call) if i == call.first else None
            else:
                cell = None if op.is_view else self._cell(i)
            if cell is not None:
                yield cell

    def _cell(self, operation: int | Span) -> Cell | None:
        if isinstance(operation, Span):
            args, results, name = (operation.args, operation.kwargs), values_in(operation.result), "attention"
        else:
            op = self.tape.operations[operation]
            args, results = (op.args, op.kwargs), [Value(number) for number in op.results]
            name = op.func._schema.name
        numbers = [value.number for value in (*values_in(args), *results)]
        if not any(self._axes(number) for number in numbers):
            return None
        views, roots = self._prepared([value.number for value in values_in(args)])
        numbers += [*roots, *(n for view in views for n in self.tape.operations[view].results)]
        is_contraction = name in CONTRACTIONS or isinstance(operation, Span)
        factors = self._factors(numbers, 2 if is_contraction else 1)
        signature = self._signature(name, args, results, views, roots, factors)
        return Cell(signature, tuple(views), operation, tuple(roots), factors, is_contraction)

    def _prepared(self, numbers: Sequence[int]) -> tuple[list[int], list[int]]:
        """The views that make some tensors, and the tensors that these start from."""
        views: set[int] = set()
        roots: dict[int, None] = {}
        pending = [self.tape.root(number) for number in numbers]
        while pending:
            number = pending.pop(0)
            made_by = self.producer.get(number)
            if made_by is None or not self.tape.operations[made_by].is_view:
                roots[number] = None
            elif made_by not in views:
                views.add(made_by)
                op = self.tape.operations[made_by]
                pending += [self.tape.root(value.number) for value in values_in((op.args, op.kwargs))]
        return sorted(views), list(roots)

    def _axes(self, number: int) -> list[Ids]:
        """The units along each dimension of a tensor that has some."""
        axes = []
        for label in self.tape.labels[number]:
            units = self.analysis.units_of[label]
            if (units >= 0).any():
                axes.append(np.ravel(collapse(units)))
        return axes

    def _factors(self, numbers: Sequence[int], most: int) -> tuple[Factor, ...]:
        """The widths that some tensors have, joined where they share units or are more than ``most``."""
        axes = {axis.tobytes(): axis for number in numbers for axis in self._axes(number)}
        parts: list[list[Ids]] = []
        for axis in sorted(axes.values(), key=len, reverse=True):
            units = np.unique(axis[axis >= 0])
            joined, apart = [axis], []
            for part in parts:
                if any(np.isin(units, other).any() for other in part):
                    joined += part
                else:
                    apart.append(part)
            parts = [*apart, joined]
        parts.sort(key=lambda part: -max(map(len, part)))
        parts = [*parts[: most - 1], [axis for part in parts[most - 1 :] for axis in part]]
        return tuple(self._factor(part) for part in parts if part)

    def _factor(self, axes: Sequence[Ids]) -> Factor:
        """The longest axis, and what others have besides."""
        axes = sorted(axes, key=len, reverse=True)
        principal, units = [axes[0]], set(axes[0].tolist())
        for axis in axes[1:]:
            if not units.issuperset(axis.tolist()):
                principal.append(axis)
                units |= set(axis.tolist())
        own = np.array(sorted(units - {-1}), dtype=np.int64)
        return Factor(np.concatenate(principal), own[np.argsort(self.rank[own], kind="stable")])

    def _signature(
        self, name: str, args: object, results: Sequence[Value], views: Sequence[int], roots: Sequence[int],
        factors: Sequence[Factor],
    ) -> str:  # fmt: skip
        local: dict[int, int] = {}
        units: dict[int, int] = {}
        groups: dict[int, int] = {}
        digest = hashlib.sha256()

        def told(part: object) -> None:
            digest.update(repr(part).encode())

        def numbered(value: Value) -> str:
            number = self.tape.root(value.number)
            if number not in local:
                local[number] = len(local)
                source = self.tape.sources.get(number)
                told((self.tape.shapes[number], str(self.tape.dtypes[number]), source.kind if source else ""))
                for axis in self._axes(number):
                    told(tuple(units.setdefault(unit, len(units)) for unit in axis.tolist()))
            return f"%{local[number]}"

        for root in roots:
            numbered(Value(root))
        for view in views:
            op = self.tape.operations[view]
            told((str(op.func), map_values((op.args, op.kwargs), numbered), [numbered(Value(n)) for n in op.results]))
        told((name, map_values(args, numbered), [numbered(value) for value in results]))
        told(tuple(groups.setdefault(int(self.group[unit]), len(groups)) for unit in units if unit >= 0))
        told([[units[unit] for unit in factor.axis.tolist()] for factor in factors])
        return digest.hexdigest()[:24]
