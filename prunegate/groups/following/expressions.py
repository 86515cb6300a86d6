"""What an expression in a model's source depends on, and what it may hold."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Collection, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import nn

from prunegate.groups.following.source_code import first_argument, flows_of, names_in

_SIZES = frozenset({"shape", "ndim"})
_SIZE_CALLS = frozenset({"size", "dim", "numel", "ndimension", "nelement"})
# Results of these functions may change if their arguments, such as sizes, may.
_PLAIN_CALLS = frozenset("abs all any bool divmod float int len list max min range round sum tuple".split())
# The storage of a tensor may change between calls too, but that does not affect what is computed.
_STORAGE = frozenset(
    """device dtype is_cuda is_meta is_nested is_quantized is_sparse layout requires_grad is_complex
    is_contiguous is_floating_point""".split()
)
UNKNOWN = object()


@lru_cache(maxsize=1024)
def _flows_and_arguments(tree: ast.FunctionDef) -> tuple[Sequence[tuple[ast.AST, ast.AST]], frozenset[str]]:
    """Which variable gets which expression in a function, and the arguments of the functions within it."""
    nodes = list(ast.walk(tree))
    inner = (node.args for node in nodes if isinstance(node, (ast.FunctionDef, ast.Lambda)) and node is not tree)
    names = frozenset(argument.arg for arguments in inner for argument in arguments.args)
    return tuple(flow for node in nodes for flow in flows_of(node)), names


class Expressions:
    """The expressions of one function.

    Args:
        module: Whose method the function is; None for a plain function.
        changing: Arguments that may differ between calls of the same model.
        carrying: Arguments that may hold removable channels.
        changing_attributes: Names of attributes that a forward sets to what changes; the function's own are added.

    Attributes:
        own_name: The name of ``self``, if the function is a method.
        flows: Which variable gets which expression.
    """

    def __init__(
        self,
        tree: ast.FunctionDef,
        module: nn.Module | None,
        function: Any,
        changing: Collection[str],
        carrying: Collection[str],
        changing_attributes: set[str],
    ) -> None:
        self.module, self.names, self.changing_attributes = module, function.__globals__, changing_attributes
        self.own_name = first_argument(tree) if module is not None else None
        self._changing, self._carrying = set(changing), set(carrying)
        self.flows, given_within = _flows_and_arguments(tree)
        self._carrying.update(given_within)  # what functions within the function are given is not known
        for names, test in ((self._changing, self.changes), (self._carrying, self.carries)):
            before = -1
            while len(names) > before:
                before = len(names)
                for target, value in self.flows:
                    if test(value):
                        names |= names_in(target) - {self.own_name}
        for target, value in self.flows:
            if isinstance(target, ast.Attribute) and self.is_own(target) and self.changes(value):
                changing_attributes.add(target.attr)

    def is_own(self, node: ast.Attribute) -> bool:
        """Whether it is an attribute of the module."""
        return isinstance(node.value, ast.Name) and node.value.id == self.own_name

    def decides(self, test: ast.expr) -> bool:
        """Whether a condition may be met in one call and not in another: by sizes, arguments or values of tensors."""
        return self.changes(test) or any(map(self._looks_at_values, ast.walk(test)))

    def _looks_at_values(self, node: ast.AST) -> bool:
        function = node.func if isinstance(node, ast.Call) else None
        return (
            isinstance(function, ast.Attribute)
            and function.attr not in _STORAGE | _SIZE_CALLS
            and self.held(function) is UNKNOWN
            and self.carries(function.value)
        )

    def changes(self, node: ast.AST) -> bool:
        """Whether an expression may have a different value in another call of the same model."""
        if isinstance(node, ast.Name):
            return node.id in self._changing
        if isinstance(node, ast.Attribute):
            if self.is_own(node):
                return node.attr in self.changing_attributes
            return node.attr in _SIZES or (node.attr not in _STORAGE and self.changes(node.value))
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Attribute):
                of_name = isinstance(function.value, ast.Name) and self.changes(function)
                return function.attr in _SIZE_CALLS or (function.attr not in _STORAGE and of_name)
            return isinstance(function, ast.Name) and function.id in _PLAIN_CALLS and any(map(self.changes, node.args))
        return any(map(self.changes, ast.iter_child_nodes(node)))

    def carries(self, node: ast.AST) -> bool:
        """Whether an expression may hold removable channels, as layer outputs do; the model's inputs do not."""
        if isinstance(node, ast.Name):
            return node.id in self._carrying
        if isinstance(node, ast.Attribute):
            if node.attr in _SIZES or node.attr in _STORAGE:
                return False
            held = self.held(node)
            return isinstance(held, (nn.Module, torch.Tensor)) if held is not UNKNOWN else self.carries(node.value)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _SIZE_CALLS:
            return False
        return any(map(self.carries, ast.iter_child_nodes(node)))

    def held(self, node: ast.expr) -> Any:
        """The value of ``self.a.b``, if the expression has this form."""
        if isinstance(node, ast.Name):
            return self.module if node.id == self.own_name else UNKNOWN
        if isinstance(node, ast.Attribute):
            holder = self.held(node.value)
            if holder is UNKNOWN or isinstance(inspect.getattr_static(type(holder), node.attr, None), property):
                return UNKNOWN  # a property may compute, or raise, anything
            return getattr(holder, node.attr, UNKNOWN)
        return UNKNOWN

    def holds_layers(self, node: ast.expr) -> bool:
        """Whether it is a layer, or a container of layers: these are read themselves."""
        attributes = (inner for inner in ast.walk(node) if isinstance(inner, ast.Attribute))
        return any(isinstance(self.held(inner), nn.Module) for inner in attributes)

    def python_module(self, function: ast.expr) -> ModuleType | None:
        root = function
        while isinstance(root, ast.Attribute):
            root = root.value
        held = self.names.get(root.id) if isinstance(root, ast.Name) else None
        return held if isinstance(held, ModuleType) else None
