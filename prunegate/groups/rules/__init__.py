"""The effects of operations on labels, with one file per family of operations, and users' rules."""

from __future__ import annotations

from prunegate.groups.rules.builtin import BUILTIN_RULES
from prunegate.groups.rules.call import Call, Rule, RuleTable
from prunegate.groups.rules.functions import FUNCTION_RULES, FunctionRule
from prunegate.groups.rules.register import OPERATION_RULES, module_rule, register_rule

__all__ = [
    "BUILTIN_RULES",
    "FUNCTION_RULES",
    "OPERATION_RULES",
    "Call",
    "FunctionRule",
    "Rule",
    "RuleTable",
    "module_rule",
    "register_rule",
]
