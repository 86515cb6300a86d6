"""A readable list of every operation, function and module with a rule."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from prunegate.groups.rules.builtin import BUILTIN_RULES
from prunegate.groups.rules.call import Rule
from prunegate.groups.rules.functions import FUNCTION_RULES
from prunegate.groups.rules.register import BUILTIN_MODULE_RULES, MODULE_RULES, OPERATION_RULES


@dataclass(frozen=True)
class RuleFamily:
    """Operations that are treated alike.

    Attributes:
        name: The family's name: ``"contraction"``, ``"normalisation"``.
        what: The effect of its operations on channels, in one sentence.
        operations: Names of operations (without namespace), functions and classes of modules, sorted.
    """

    name: str
    what: str
    operations: tuple[str, ...]


def rule_families() -> list[RuleFamily]:
    """All rules by family, with users' rules last; operations that torch tags as pointwise need none."""
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
    """The Python module that defines a rule; for a wrapped rule, that of the wrapper."""
    return str(getattr(rule, "__module__", ""))


def _first_sentence(module: str) -> str:
    documented = sys.modules[module].__doc__ or ""
    return documented.strip().splitlines()[0] if documented.strip() else ""
