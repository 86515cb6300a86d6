"""Every operation, function and module that has a rule, for people to read."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from prunegate.groups.rules.builtin import BUILTIN_RULES
from prunegate.groups.rules.call import Rule
from prunegate.groups.rules.functions import FUNCTION_RULES
from prunegate.groups.rules.register import BUILTIN_MODULE_RULES, MODULE_RULES, OPERATION_RULES


@dataclass(frozen=True)
class RuleFamily:
    """Operations that are handled alike.

    Attributes:
        name: What the family is called: ``"contraction"``, ``"normalisation"``.
        what: What its operations do to channels, in a sentence.
        operations: Names of operations (without namespace), functions and classes of modules, sorted.
    """

    name: str
    what: str
    operations: tuple[str, ...]


def rule_families() -> list[RuleFamily]:
    """All rules by family, those of users last; operations that torch tags as pointwise need none."""
    results: dict[str, list[str]] = {}
    for name, rule in (
        *BUILTIN_RULES.items(),
        *((name, known.rule) for name, known in FUNCTION_RULES.items()),
        *((cls.__name__, rule) for cls, rule in BUILTIN_MODULE_RULES.items()),
    ):
        results.setdefault(_family_of(rule), []).append(name)
    families = [
        RuleFamily(module.rpartition(".")[2], _first_sentence(module), tuple(sorted(names)))
        for module, names in sorted(results.items())
    ]
    own = (*OPERATION_RULES, *(cls.__qualname__ for cls in MODULE_RULES))
    return (
        [*families, RuleFamily("registered", "Rules that were registered in this process.", own)] if own else families
    )


def _family_of(rule: Rule) -> str:
    """The module that states a rule: for a wrapped one that of the function that wraps it."""
    return str(getattr(rule, "__module__", ""))


def _first_sentence(module: str) -> str:
    documented = sys.modules[module].__doc__ or ""
    return documented.strip().splitlines()[0] if documented.strip() else ""
