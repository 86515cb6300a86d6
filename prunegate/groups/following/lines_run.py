"""Lines of a model's code that runs went through, as far as calls of torch's functions show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from prunegate.groups.following.maskable import MASKABLE

# Functions of which the result at one channel depends on other channels if they are called along these.
SUSPECT = MASKABLE | frozenset(
    """argmax argmin argsort chunk count_nonzero cummax cummin cumprod flip median msort nanmean nanmedian nansum
    quantile roll sort tensor_split topk unique""".split()
)
# File and line of a call.
Line: TypeAlias = "tuple[str, int]"


@dataclass(frozen=True)
class LinesRun:
    """Lines that runs went through.

    Attributes:
        called: Where functions in `SUSPECT` were called.
        passed: Where any function was called, and where the functions stand that led there.
    """

    called: set[Line] = field(default_factory=set)
    passed: set[Line] = field(default_factory=set)

    def add(self, name: str, stack: Sequence[Line]) -> None:
        """A call of one of torch's functions, by the lines that led to it, the last one first."""
        if name in SUSPECT:
            self.called.add(stack[0])
        self.passed.update(stack)
