"""Functions of torch that are known as wholes: what they compute in steps would say less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prunegate.groups.rules.call import Rule
from prunegate.groups.rules.normalisation import weight_norm


@dataclass(frozen=True)
class FunctionRule:
    """What a function does to channels.

    Attributes:
        names: Of its arguments, in order.
    """

    names: tuple[str, ...]
    rule: Rule


# By the function's name, as `prunegate.groups.following.watch.function_name` gives it.
FUNCTION_RULES: Mapping[str, FunctionRule] = {"_weight_norm": FunctionRule(("v", "g", "dim"), weight_norm)}
