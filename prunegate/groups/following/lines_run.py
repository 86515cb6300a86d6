"""Lines of a model's code that were run, as far as calls of torch functions show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from prunegate.groups.following.maskable import MASKABLE

# Functions whose result at one channel depends on other channels if they are called along the channel dimension.
SUSPECT = MASKABLE | frozenset(
    """argmax argmin argsort chunk count_nonzero cummax cummin cumprod flip median msort nanmean nanmedian nansum
    quantile roll sort tensor_split topk unique""".split()
)
# File and line of a call.
Line: TypeAlias = "tuple[str, int]"


@dataclass(frozen=True)
class LinesRun:
    """Lines that were run.

    Attributes:
        called: Lines where functions in `SUSPECT` were called.
        passed: Lines where any function was called, and those of its callers.
    """

    called: set[Line] = field(default_factory=set)
    passed: set[Line] = field(default_factory=set)

    def add(self, name: str, stack: Sequence[Line]) -> None:
        """Add a call of a torch function, given by its call stack, innermost line first."""
        if name in SUSPECT:
            self.called.add(stack[0])
        self.passed.update(stack)
