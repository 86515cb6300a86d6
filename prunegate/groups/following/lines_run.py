"""Lines of a model's code that were run, as far as calls of torch functions show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

# File and line of a call.
Line: TypeAlias = "tuple[str, int]"
# The same with the function's name, and the numbers that it was given if these say where it looks.
Functions: TypeAlias = "set[tuple[Any, ...]]"


@dataclass(frozen=True)
class LinesRun:
    """Lines that were run.

    Attributes:
        passed: Where any function was called, and where the functions stand that led there.
        functions: Which functions were called, and where.
    """

    passed: set[Line] = field(default_factory=set)
    functions: Functions = field(default_factory=set)

    def add(self, stack: Sequence[Line]) -> None:
        """The call of a module, by the lines that led to it, the last one first."""
        self.passed.update(stack)

    def add_function(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], stack: Sequence[Line]) -> None:
        """A call of one of torch's functions."""
        self.functions.add(as_called(name, args, kwargs, stack[0]))
        self.passed.update(stack)


def as_called(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], line: Line) -> tuple[Any, ...]:
    """What tells one call of a function from others: where it stands, and the numbers and slices that it is given."""
    pending, numbers = [*args, *kwargs.values()], []
    while pending:
        one = pending.pop()
        if type(one) in (tuple, list):
            pending += one
        elif type(one) is int:
            numbers.append(one)
        elif type(one) is slice:
            pending += [one.start, one.stop, one.step]
    return (*line, name, tuple(numbers))
