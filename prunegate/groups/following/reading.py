"""Reading a model's source for calls that depend on conditions and were made in no run."""

from __future__ import annotations

import ast
import builtins
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from torch import nn

from prunegate.groups.following.expressions import UNKNOWN, Expressions
from prunegate.groups.following.lines_run import Line, LinesRun
from prunegate.groups.following.mixing import MIXING, is_mixing
from prunegate.groups.following.source_code import (
    definition,
    is_of,
    leaves,
    own_forward,
    picks_channels,
)


class Unrun(NamedTuple):
    """One call that no run made, and the condition that it depends on."""

    module: str
    condition: str
    file: str
    line: int
    call: str


class _Task(NamedTuple):
    """A function to read, either a method of a module or a plain function.

    Attributes:
        changing: Arguments that may differ between calls of the same model.
        carrying: Arguments that may hold removable channels.
        condition: The condition that decides whether it is called.
    """

    path: str
    module: nn.Module | None
    function: Any
    changing: frozenset[str]
    carrying: frozenset[str]
    condition: str | None


@dataclass
class Search:
    """Reads functions and, as far as they can be determined, the functions that they call.

    Attributes:
        ran: Identities of the modules that ran.
        unrun: Calls that no run made, by where they stand.
        changing: Names of attributes that a forward sets to what changes from call to call.
    """

    lines: LinesRun
    ran: frozenset[int] = frozenset()
    unrun: dict[Line, Unrun] = field(default_factory=dict)
    changing: set[str] = field(default_factory=set)
    _tasks: list[_Task] = field(default_factory=list)
    _known: set[Any] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.called = {call[:3] for call in self.lines.functions}

    def add(
        self,
        function: Any,
        path: str,
        module: nn.Module | None,
        changing: frozenset[str],
        carrying: frozenset[str],
        condition: str | None = None,
    ) -> None:
        """Read one more function; see `_Task`."""
        function = inspect.unwrap(function) if callable(function) else None
        if not isinstance(function, FunctionType) or is_of(function, "torch."):
            return
        if (function.__module__ or "").partition(".")[0] in sys.stdlib_module_names:
            return
        key = (function.__code__, type(module), changing, carrying, condition)
        if key not in self._known:
            self._known.add(key)
            self._tasks.append(_Task(path, module, function, changing, carrying, condition))

    def add_forward(self, path: str, module: nn.Module, changing: frozenset[str], carrying: frozenset[str]) -> None:
        """Read the forward that a module's author wrote, or that was put in its place."""
        forward, is_method = own_forward(module)
        self.add(forward, path, module if is_method else None, changing, carrying)

    def run(self) -> None:
        first, known = list(self._tasks), -1
        while len(self.changing) > known:  # what one function sets decides in another
            known = len(self.changing)
            self._tasks = list(first)
            self._known.clear()
            self._read()

    def _read(self) -> None:
        while self._tasks:
            task = self._tasks.pop()
            tree = definition(task.function.__code__)
            if tree is not None:
                _Reader(self, task, tree).body(tree.body, task.condition)


class _Reader(Expressions):
    """Reads one function: what of it changes from call to call, and what is called below such conditions."""

    def __init__(self, search: Search, task: _Task, tree: ast.FunctionDef) -> None:
        super().__init__(tree, task.module, task.function, task.changing, task.carrying, search.changing)
        self.search, self.task = search, task
        self._file = task.function.__code__.co_filename

    def body(self, statements: Sequence[ast.stmt], condition: str | None) -> None:
        """Read statements that run under a condition; None if the runs have covered them."""
        for number, statement in enumerate(statements):
            if isinstance(statement, (ast.If, ast.While)):
                self.expression(statement.test, condition)
                below = self._below(statement.test, condition)
                after = statement.test.end_lineno or statement.test.lineno
                for arm in (statement.body, statement.orelse):
                    self.body(arm, None if self.ran(arm, after) else below)
                rest = statements[number + 1 :]
                if isinstance(statement, ast.If) and any(map(leaves, (statement.body, statement.orelse))):
                    condition = None if self.ran(rest, after) else below
            elif isinstance(statement, ast.For):
                self.expression(statement.iter, condition)
                below = condition or (
                    f"for ... in {ast.unparse(statement.iter)}" if self.changes(statement.iter) else None
                )
                self.body(statement.body, None if self.ran(statement.body, statement.lineno) else below)
                self.body(statement.orelse, condition)
            elif not isinstance(statement, (ast.ClassDef, ast.Raise, ast.Assert)):
                for inner in ast.iter_child_nodes(statement):
                    if isinstance(inner, (ast.expr, ast.withitem)):
                        self.expression(inner, condition)
                for name in ("body", "orelse", "finalbody"):
                    self.body(getattr(statement, name, []), condition)
                for handler in getattr(statement, "handlers", []):
                    self.body(handler.body, condition)
                if isinstance(statement, ast.Match):
                    for case in statement.cases:
                        below = self._below(statement.subject, condition)
                        self.body(case.body, None if self.ran(case.body, statement.lineno) else below)

    def expression(self, node: ast.AST, condition: str | None) -> None:
        """Read an expression that is evaluated under a condition."""
        if isinstance(node, ast.IfExp):
            self.expression(node.test, condition)
            for arm in (node.body, node.orelse):
                self.expression(arm, self._below(node.test, condition))
            return
        if isinstance(node, ast.BoolOp):
            self.expression(node.values[0], condition)
            for value in node.values[1:]:
                self.expression(value, self._below(node.values[0], condition))
            return
        if isinstance(node, ast.Call):
            self.call(node, condition)
            function = node.func.value if isinstance(node.func, ast.Attribute) else node.func
            for part in (function, *node.args, *node.keywords):
                self.expression(part, condition)
            return
        if isinstance(node, ast.Attribute):
            self.attribute(node, condition)
        elif isinstance(node, ast.Subscript):
            if picks_channels(node.slice):
                self.note(node, condition, "getitem")
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            self.note(node, condition, "matmul")
        for inner in ast.iter_child_nodes(node):
            self.expression(inner, condition)

    def ran(self, statements: Sequence[ast.stmt], after: int) -> bool:
        """Whether a run went through these statements, as far as that shows beyond a line."""
        lines = (line for one in statements for line in range(max(one.lineno, after + 1), (one.end_lineno or 0) + 1))
        return any((self._file, line) in self.search.lines.passed for line in lines)

    def _below(self, test: ast.expr, condition: str | None) -> str | None:
        return ast.unparse(test) if self.decides(test) else condition

    def call(self, node: ast.Call, condition: str | None) -> None:
        """Read a call of the model's own code, which is then read as well, or of torch."""
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        called, module = self._called(node.func)
        if called is not None:
            bound = module is not None
            changing, carrying = (self._given(called, bound, node, test) for test in (self.changes, self.carries))
            self.search.add(called, self.task.path, module, changing, carrying, condition)
            return
        self._dimension(node)
        if condition is not None and self._may_mix(node.func, name):
            self.note(node, condition, name)

    def _may_mix(self, function: ast.expr, name: str) -> bool:
        """Whether a call of something that is not read may look across channels.

        Losses do not count: they are made of what the model returns, of which nothing is removed.
        """
        if "loss" in name.lower():
            return False
        if isinstance(function, ast.Attribute):
            held = self.held(function)
            if isinstance(held, nn.Module):
                never_ran = id(held) not in self.search.ran and any(True for _ in held.parameters())
                return never_ran or is_mixing(held)
            if held is not UNKNOWN:
                return callable(held)
            module = self.python_module(function)
            return name in MIXING and (module is None or module.__name__.startswith("torch"))
        if isinstance(function, ast.Name):
            known = self.names.get(name, getattr(builtins, name, UNKNOWN))
            if known is not UNKNOWN:
                return is_of(known, "torch") and name in MIXING
            values = [value for target, value in self.flows if isinstance(target, ast.Name) and target.id == name]
            return any(isinstance(value, _CHOICES) and not self.holds_layers(value) for value in values)
        # What a call or a lookup gives, but of a table in the file or as another object of a class.
        inner = function.func if isinstance(function, ast.Call) else getattr(function, "value", None)
        is_known = isinstance(inner, ast.Name) and (inner.id == "type" or inner.id in self.names)
        return not is_known or (isinstance(inner, ast.Name) and inner.id == "getattr")

    def attribute(self, node: ast.Attribute, condition: str | None) -> None:
        """Read an attribute: a property, or a function of torch that is called elsewhere."""
        module = self.module
        if module is not None and self.is_own(node):
            held = inspect.getattr_static(type(module), node.attr, None)
            if isinstance(held, property):
                self.search.add(held.fget, self.task.path, module, frozenset(), frozenset(), condition)
            elif isinstance(held, FunctionType):  # a method that is called elsewhere
                names = frozenset(inspect.signature(held).parameters)
                self.search.add(held, self.task.path, module, frozenset(), names, condition)
        place = self.python_module(node)
        if node.attr in MIXING and place is not None and place.__name__.startswith("torch"):
            self.note(node, condition, node.attr, always=True)

    def _dimension(self, node: ast.Call) -> None:
        """Note a call whose dimension is for an argument of the model to say."""
        given = [keyword.value for keyword in node.keywords if keyword.arg in ("dim", "axis")]
        for inner in (inner for expression in given for inner in ast.walk(expression)):
            is_argument = isinstance(inner, ast.Name) and inner.id in self.task.changing
            if is_argument or (isinstance(inner, ast.IfExp) and self.decides(inner.test)):
                unrun = Unrun(self.task.path, ast.unparse(given[0]), self._file, node.lineno, ast.unparse(node))
                if self.carries(node):
                    self.search.unrun.setdefault((self._file, node.lineno), unrun)

    def note(self, node: ast.expr, condition: str | None, name: str, always: bool = False) -> None:
        """Note a call that no run made, if it may have to do with channels."""
        if condition is None or not (always or self.carries(node)):
            return
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        if not any((self._file, line, name) in self.search.called for line in lines):
            unrun = Unrun(self.task.path, condition, self._file, node.lineno, ast.unparse(node))
            self.search.unrun.setdefault((self._file, node.lineno), unrun)

    def _called(self, function: ast.expr) -> tuple[Callable[..., Any] | None, nn.Module | None]:
        """The Python function that is called, and the module if it is a method; None if it cannot be determined."""
        module, names = self.module, self.names
        held: Any = None
        if isinstance(function, ast.Name):
            held, module = names.get(function.id), None
        elif isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            if function.value.id == self.own_name and module is not None:
                held = inspect.getattr_static(type(module), function.attr, None)
                child = module._modules.get(function.attr)
                if child is not None and not is_of(type(child), "torch."):
                    forward, is_method = own_forward(child)
                    return forward, child if is_method else None
            else:
                place, module = names.get(function.value.id), None
                held = getattr(place, function.attr, None) if isinstance(place, ModuleType) else None
        elif isinstance(function, ast.Attribute) and isinstance(holder := self.held(function.value), nn.Module):
            held, module = inspect.getattr_static(type(holder), function.attr, None), holder
        if isinstance(held, staticmethod):
            held, module = held.__func__, None
        is_own = isinstance(held, FunctionType) and not is_of(held, "torch.")
        return (held, module) if is_own else (None, None)

    def _given(
        self, called: Callable[..., Any], bound: bool, node: ast.Call, test: Callable[[ast.AST], bool]
    ) -> frozenset[str]:
        """The parameters of a called function whose arguments pass a test."""
        try:
            parameters = list(inspect.signature(called).parameters.values())
        except (TypeError, ValueError):
            return frozenset()
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        given = {name for name, argument in zip(names[bound:], node.args, strict=False) if test(argument)}
        return frozenset(given | {keyword.arg for keyword in node.keywords if keyword.arg and test(keyword.value)})


# Expressions that choose or make a function.
_CHOICES = (ast.Lambda, ast.IfExp, ast.Subscript, ast.Attribute)
