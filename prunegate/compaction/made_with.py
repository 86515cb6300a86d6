"""Plain data that determines the forward of a fixed-up module, for comparison."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

from torch import nn

from prunegate.compaction.derived_classes import forwards_of
from prunegate.compaction.narrow_attention import heads_of
from prunegate.compaction.replayed_class import source_of
from prunegate.compaction.resizing import rules_of


def made_with(module: nn.Module) -> dict[str, Any]:
    """The code that is replayed, the heads of narrow attention and the rules for sizes in calls.

    The result is JSON-ready, the same in every process, and empty for a module with the forward of its own class.
    """
    results = {
        "forwards": forwards_of(module),
        "heads": _plain(heads_of(module)),
        "sizes": _plain([dataclasses.astuple(rule) for rule in rules_of(module)]),
        "source": source_of(module),
    }
    return {name: value for name, value in results.items() if value}


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator}"
    return value if value is None or isinstance(value, str) else int(value)
