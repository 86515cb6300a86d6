"""Whether a model's own code behaves differently in training mode, determined from its source.

Randomly dropping results does not change which channels belong together. Layers and heads that run only in training do,
and so do calls that mix channels, and sizes passed to functions.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Collection
from functools import lru_cache
from types import CodeType
from typing import Any

from torch import nn

from prunegate.groups.following.lines_run import LinesRun
from prunegate.groups.following.reading import UNKNOWN, Reader, Search, own_forward
from prunegate.groups.following.size_calls import SIZED


def differs_in_training(model: nn.Module, ran: Collection[str], lines: LinesRun) -> bool:
    """Whether code of the model, other than torch's own layers, does more in training mode than in eval mode.

    Args:
        ran: Paths of the modules that ran.
        lines: The lines of the run in eval mode.
    """
    classes: set[Any] = {type(module) for module in model.modules()}
    if not any(map(_looks_at_training, classes)):
        return False
    search = Search(lines, _ReaderOfTraining)
    for path in ran:
        module = model.get_submodule(path)
        forward = own_forward(module)
        if forward is not None and not type(module).__module__.startswith("torch."):
            names = frozenset(inspect.signature(forward).parameters)
            search.add(forward, path, module, frozenset(), names)
    search.run()
    return bool(search.unrun or search.unread)


class _ReaderOfTraining(Reader):
    """Reads code that runs only in training: the mode is the only thing that changes."""

    def changes(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Name):
            return node.id in self.changing
        if isinstance(node, ast.Attribute):
            return node.attr == "training"
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
            # Options that a module was built without do not change.
            return any(map(self.changes, node.values)) and not any(self.held(value) is False for value in node.values)
        return not isinstance(node, ast.Call) and any(map(self.changes, ast.iter_child_nodes(node)))

    def other_call(self, node: ast.Call, name: str, condition: str) -> None:
        held = self.held(node.func)
        if isinstance(held, nn.modules.dropout._DropoutNd):
            return
        if held is not UNKNOWN or not isinstance(node.func, (ast.Name, ast.Attribute)):
            self.note(node, condition, always=True)  # unknown code
        elif name in SIZED and (name not in _MAKING or self._may_hold_channels(node)):
            self.note(node, condition, always=True)

    def _may_hold_channels(self, node: ast.AST) -> bool:
        """Whether a number in an expression, other than those read from tensors, may be a number of channels."""
        numbers = [inner.value if isinstance(inner, ast.Constant) else self.held(inner) for inner in ast.walk(node)
                   if isinstance(inner, (ast.Constant, ast.Attribute))]  # fmt: skip
        return any(isinstance(number, int) and number > 1 for number in numbers)


# Functions that create a tensor of a given size, such as one random number per sample in stochastic depth.
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
