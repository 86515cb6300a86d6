"""Torch functions with a rule for the whole function, as their individual operations show less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prunegate.groups.rules.call import Rule
from prunegate.groups.rules.normalisation import weight_norm


@dataclass(frozen=True)
class FunctionRule:
    """The effect of a function on channels.

    Attributes:
        names: Names of its arguments, in order.
    """

    names: tuple[str, ...]
    rule: Rule


# By the function's name from `prunegate.groups.following.watch.function_name`.
FUNCTION_RULES: Mapping[str, FunctionRule] = {"_weight_norm": FunctionRule(("v", "g", "dim"), weight_norm)}
