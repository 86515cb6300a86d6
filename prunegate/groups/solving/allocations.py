"""How much memory the tensors of a run take, and for how long."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prunegate.groups.analysis import Analysis, LoopNest
from prunegate.groups.following.tape import Tape, values_in
from prunegate.groups.solving.labels import collapse, varying


@dataclass(frozen=True)
class TensorOfRun:
    """One tensor that an operation made, with its views: entries, bytes of each, and the operations it outlives."""

    nest: LoopNest
    entry_bytes: int
    first: int
    last: int


def tensors_of_run(tape: Tape, analysis: Analysis) -> list[TensorOfRun]:
    """All tensors that a run allocates.

    A tensor is in use from the operation that makes it to the last that reads it, and as long as the call of a module
    or function that it was given to, as the caller refers to it.
    """
    return list(_Lives(tape, analysis).all())


class _Lives:
    def __init__(self, tape: Tape, analysis: Analysis) -> None:
        self.tape, self.analysis = tape, analysis
        self.owner: dict[int, int] = {}  # the number under which the memory of a tensor was allocated
        self.made: dict[int, int] = {}
        self.last: dict[int, int] = {}

    def all(self) -> Iterator[TensorOfRun]:
        for index, op in enumerate(self.tape.operations):
            given = [self._root(value.number) for value in values_in((op.args, op.kwargs))]
            for number in given:
                self.last[number] = index
            for number in op.results:
                if op.shares_memory and given:
                    self.owner[number] = given[0]
                else:
                    self.made[number] = self.last[number] = index
        for span in self.tape.spans:
            for value in values_in((span.args, span.kwargs)):
                number = self._root(value.number)
                if number in self.made and span.last > span.first:
                    self.last[number] = max(self.last[number], span.last - 1)
        whole = self.tape.spans[0] if self.tape.spans else None
        for value in values_in(whole.result) if whole is not None else []:
            number = self._root(value.number)
            if number in self.made:
                self.last[number] = len(self.tape.operations) - 1
        for number, first in self.made.items():
            size = self.tape.dtypes[number].itemsize
            yield TensorOfRun(self._nest(number), size, first, self.last[number])

    def _root(self, number: int) -> int:
        number = self.tape.root(number)
        while number in self.owner:
            number = self.tape.root(self.owner[number])
        return number

    def _nest(self, number: int) -> LoopNest:
        """The entries of a tensor as a product of sizes."""
        axes = {}
        for label in self.tape.labels[number]:
            units = collapse(self.analysis.units_of[label])
            dims = varying(units)
            if len(dims) == 1 and (units >= 0).any():
                axes[dims[0]] = units.reshape(-1)
        constant = 1
        for dim, size in enumerate(self.tape.shapes[number]):
            constant *= 1 if dim in axes else size
        return LoopNest("", constant, tuple(axes.values()))
