"""Whether a model's own code acts differently in training, read off the code.

Dropping at random what is computed anyway makes no difference to which channels go together. Layers and heads that
only training runs do, and so do calls that look across channels, and sizes that are handed to functions.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType
from typing import Any, NamedTuple

from torch import nn

from prunegate.groups.following.lines_run import LinesRun
from prunegate.groups.following.reading import UNKNOWN, Reader, Search
from prunegate.groups.following.size_calls import SIZED
from prunegate.groups.following.source_code import own_forward


class OwnTraining(NamedTuple):
    """What code of a model, other than torch's own layers, does in training and did not do in a run in eval mode.

    Attributes:
        does_more: It does something that has to do with channels.
        skips: It may skip what eval mode does, such as layers that are dropped at random.
    """

    does_more: bool = False
    skips: bool = False


def own_training(model: nn.Module, ran: Collection[str], lines: LinesRun) -> OwnTraining:
    """Read what the model does in training.

    Args:
        ran: Paths of the modules that ran.
        lines: What the run in eval mode went through.
    """
    classes: set[Any] = {type(module) for module in model.modules()}
    if not any(map(_looks_at_training, classes)):
        return OwnTraining()
    search = _SearchOfTraining(lines, _ReaderOfTraining)
    for path in ran:
        module = model.get_submodule(path)
        forward = vars(module).get("forward") or own_forward(module)
        names = frozenset() if forward is None else frozenset(inspect.signature(forward).parameters)
        search.add_forward(path, module, frozenset(), names)
    search.run()
    return OwnTraining(bool(search.unrun or search.unread), search.skips)


@dataclass
class _SearchOfTraining(Search):
    skips: bool = False


class _ReaderOfTraining(Reader):
    """Reads what only training runs: what changes is the mode alone."""

    def decides(self, test: ast.expr) -> bool:
        return self.changes(test)

    def changes(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Name):
            return node.id in self.changing
        if isinstance(node, ast.Attribute):
            return node.attr == "training"
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
            return any(map(self.changes, node.values)) and not any(map(self._is_never, node.values))
        return not isinstance(node, ast.Call) and any(map(self.changes, ast.iter_child_nodes(node)))

    def _is_never(self, test: ast.expr) -> bool:
        """Whether a condition is never met: what a module was built without, or drops with probability 0."""
        if isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Lt):
            return bool(self.held(test.comparators[0]) == 0)
        return not self.changes(test) and self.held(test) is False

    def branch(self, statement: ast.If | ast.While, rest: Sequence[ast.stmt]) -> None:
        if not self.changes(statement.test):
            return
        after = statement.test.end_lineno or statement.test.lineno
        arms = (statement.body, statement.orelse)
        leaves = any(map(self._may_leave, (*statement.body, *statement.orelse)))
        if any(self.ran(arm, after) for arm in arms) or (leaves and self.ran(rest, after)):
            assert isinstance(self.search, _SearchOfTraining)
            self.search.skips = True

    def _may_leave(self, statement: ast.stmt) -> bool:
        if isinstance(statement, (ast.Return, ast.Continue, ast.Break)):
            return True
        if isinstance(statement, ast.If) and self._is_never(statement.test):
            return any(map(self._may_leave, statement.orelse))
        inner = (getattr(statement, name, []) for name in ("body", "orelse", "finalbody"))
        return not isinstance(statement, ast.FunctionDef) and any(
            self._may_leave(one) for some in inner for one in some
        )

    def other_call(self, node: ast.Call, name: str, condition: str) -> None:
        held = self.held(node.func)
        if isinstance(held, nn.modules.dropout._DropoutNd):
            return
        if held is not UNKNOWN or not isinstance(node.func, (ast.Name, ast.Attribute)):
            self.note(node, condition, always=True)  # code that is not known
        elif name in SIZED and (name not in _MAKING or self._may_hold_channels(node)):
            self.note(node, condition, always=True)

    def _may_hold_channels(self, node: ast.AST) -> bool:
        """Whether a number of an expression, other than those read from tensors, may be one of channels."""
        numbers = [inner.value if isinstance(inner, ast.Constant) else self.held(inner) for inner in ast.walk(node)
                   if isinstance(inner, (ast.Constant, ast.Attribute))]  # fmt: skip
        return any(isinstance(number, int) and number > 1 for number in numbers)


# Functions that make a tensor of a size: where paths are dropped at random, one number for each sample.
_MAKING = frozenset("new_zeros new_ones new_empty new_full zeros ones empty full rand randn".split())


@lru_cache(maxsize=4096)
def _looks_at_training(cls: type) -> bool:
    for base in cls.__mro__:
        if base.__module__.startswith("torch.") or base is object:
            continue
        for member in vars(base).values():
            code = getattr(inspect.unwrap(member) if callable(member) else member, "__code__", None)
            if code is not None and _names_training(code):
                return True
    return False


def _names_training(code: CodeType) -> bool:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return "training" in code.co_names or any(map(_names_training, inner))
