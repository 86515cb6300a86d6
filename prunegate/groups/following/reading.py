"""Reading a model's source for calls that depend on conditions and were made in no run."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

from prunegate.groups.following.lines_run import SUSPECT, Line, LinesRun

_SIZES = frozenset({"shape", "ndim"})
_SIZE_CALLS = frozenset({"size", "dim", "numel", "ndimension", "nelement"})
# Results of these functions may change if their arguments, such as sizes, may.
_PLAIN_CALLS = frozenset("abs all any bool divmod float int len list max min range round sum tuple".split())
# The storage of a tensor may change between calls too, but that does not affect what is computed.
_STORAGE = frozenset(
    """device dtype is_cuda is_meta is_nested is_quantized is_sparse layout requires_grad is_complex
    is_contiguous is_floating_point""".split()
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
        reader: The class that reads one function.
        unrun: Calls that no run made, by their position.
        unread: Names of functions without source.
    """

    lines: LinesRun
    reader: type[Reader]
    unrun: dict[Line, Unrun] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    _tasks: list[_Task] = field(default_factory=list)
    _known: set[Any] = field(default_factory=set)

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
        function = inspect.unwrap(function)
        if not isinstance(function, FunctionType) or function.__module__.startswith("torch."):
            return
        key = (function.__code__, type(module), changing, carrying, condition)
        if key not in self._known:
            self._known.add(key)
            self._tasks.append(_Task(path, module, function, changing, carrying, condition))

    def run(self) -> None:
        while self._tasks:
            task = self._tasks.pop()
            tree = _definition(task.function.__code__)
            if tree is None:
                self.unread.append(task.function.__qualname__)
            else:
                self.reader(self, task, tree).body(tree.body, task.condition)


class Reader:
    """Reads one function: which values may change between calls, and which calls depend on them."""

    def __init__(self, search: Search, task: _Task, tree: ast.FunctionDef) -> None:
        self.search, self.task = search, task
        self.changing, self.carrying = set(task.changing), set(task.carrying)
        self._file = task.function.__code__.co_filename
        self._self = _first_argument(tree) if task.module is not None else None
        flows = [flow for node in ast.walk(tree) for flow in _flows(node)]
        for names, test in ((self.changing, self.changes), (self.carrying, self.carries)):
            before = -1
            while len(names) > before:
                before = len(names)
                for target, value in flows:
                    if test(value):
                        names |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)} - {self._self}

    def body(self, statements: Sequence[ast.stmt], condition: str | None) -> None:
        """Read statements that run under a condition; None if the runs have covered them."""
        for number, statement in enumerate(statements):
            if isinstance(statement, (ast.If, ast.While)):
                self.expression(statement.test, condition)
                below = self._below(statement.test, condition)
                after = statement.test.end_lineno or statement.test.lineno
                for arm in (statement.body, statement.orelse):
                    self.body(arm, None if self._ran(arm, after) else below)
                rest = statements[number + 1 :]
                if isinstance(statement, ast.If) and any(map(_leaves, (statement.body, statement.orelse))):
                    condition = None if self._ran(rest, after) else below
            elif not isinstance(statement, (ast.FunctionDef, ast.ClassDef, ast.Raise, ast.Assert)):
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
                        self.body(case.body, None if self._ran(case.body, statement.lineno) else below)

    def expression(self, node: ast.AST, condition: str | None) -> None:
        """Read an expression that is evaluated under a condition."""
        if isinstance(node, ast.IfExp):
            self.expression(node.test, condition)
            for arm in (node.body, node.orelse):
                self.expression(arm, self._below(node.test, condition))
            return
        if isinstance(node, ast.Call):
            self.call(node, condition)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            self.note(node, condition)
        for inner in ast.iter_child_nodes(node):
            self.expression(inner, condition)

    def _ran(self, statements: Sequence[ast.stmt], after: int) -> bool:
        """Whether these statements were run, as far as calls after a line show it."""
        lines = (line for one in statements for line in range(max(one.lineno, after + 1), (one.end_lineno or 0) + 1))
        return any((self._file, line) in self.search.lines.passed for line in lines)

    def _below(self, test: ast.expr, condition: str | None) -> str | None:
        return ast.unparse(test) if condition is None and self.changes(test) else condition

    def changes(self, node: ast.AST) -> bool:
        """Whether an expression may have a different value in another call of the same model."""
        if isinstance(node, ast.Name):
            return node.id in self.changing
        if isinstance(node, ast.Attribute):
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
            return node.id in self.carrying
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
            return self.task.module if node.id == self._self else UNKNOWN
        if isinstance(node, ast.Attribute):
            holder = self.held(node.value)
            return UNKNOWN if holder is UNKNOWN else getattr(holder, node.attr, UNKNOWN)
        return UNKNOWN

    def call(self, node: ast.Call, condition: str | None) -> None:
        """Read a call of the model's own code, which is then read as well, or of torch."""
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        called, module = self._called(node.func)
        if called is not None:
            bound = module is not None
            changing, carrying = (self._given(called, bound, node, test) for test in (self.changes, self.carries))
            self.search.add(called, self.task.path, module, changing, carrying, condition)
        elif name in SUSPECT and self._may_be_of_torch(node.func):
            self.note(node, condition)
        elif condition is not None:
            self.other_call(node, name, condition)

    def other_call(self, node: ast.Call, name: str, condition: str) -> None:
        """Read any other call under a condition."""

    def note(self, node: ast.expr, condition: str | None, always: bool = False) -> None:
        """Record a call that no run made, if it may involve channels."""
        if condition is None or not (always or self.carries(node)):
            return
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        if not any((self._file, line) in self.search.lines.called for line in lines):
            unrun = Unrun(self.task.path, condition, self._file, node.lineno, ast.unparse(node))
            self.search.unrun.setdefault((self._file, node.lineno), unrun)

    def _may_be_of_torch(self, function: ast.expr) -> bool:
        """Whether it may be a tensor method or a torch function."""
        root = function
        while isinstance(root, ast.Attribute):
            root = root.value
        if not isinstance(root, ast.Name):
            return True
        held = self.task.function.__globals__.get(root.id)
        if isinstance(held, ModuleType):
            return held.__name__.startswith("torch")
        if isinstance(function, ast.Name):  # Python's own max, or a function that was imported by name
            return getattr(held, "__module__", "").startswith("torch")
        return not (root.id == self._self and isinstance(function, ast.Attribute) and function.value is root)

    def _called(self, function: ast.expr) -> tuple[Callable[..., Any] | None, nn.Module | None]:
        """The Python function that is called, and the module if it is a method; None if it cannot be determined."""
        module, names = self.task.module, self.task.function.__globals__
        held: Any = None
        if isinstance(function, ast.Name):
            held, module = names.get(function.id), None
        elif isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            if function.value.id == self._self and module is not None:
                held = inspect.getattr_static(type(module), function.attr, None)
                child = module._modules.get(function.attr)
                if child is not None and not type(child).__module__.startswith("torch."):
                    return own_forward(child), child
            else:
                place, module = names.get(function.value.id), None
                held = getattr(place, function.attr, None) if isinstance(place, ModuleType) else None
        if isinstance(held, staticmethod):
            held, module = held.__func__, None
        is_own = isinstance(held, FunctionType) and not held.__module__.startswith("torch.")
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


UNKNOWN = object()


def own_forward(module: nn.Module) -> Any:
    """The forward written by the model's author, which cut and gated modules may wrap."""
    for cls in type(module).__mro__:
        forward = vars(cls).get("forward")
        if forward is not None and not forward.__module__.startswith(("prunegate.compaction.", "prunegate.gates.")):
            return forward
    return None


def _flows(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """The names that are assigned here, and the expressions that they are assigned from."""
    if isinstance(node, ast.Assign):
        yield from ((target, node.value) for target in node.targets)
    elif isinstance(node, (ast.AugAssign, ast.AnnAssign, ast.NamedExpr)):
        if node.value is not None:
            yield node.target, node.value
    elif isinstance(node, (ast.For, ast.comprehension)):
        yield node.target, node.iter
    elif isinstance(node, ast.withitem) and node.optional_vars is not None:
        yield node.optional_vars, node.context_expr


def _first_argument(tree: ast.FunctionDef) -> str | None:
    arguments = (*tree.args.posonlyargs, *tree.args.args)
    return arguments[0].arg if arguments else None


def _leaves(statements: Sequence[ast.stmt]) -> bool:
    return bool(statements) and isinstance(statements[-1], (ast.Return, ast.Continue, ast.Break))


@lru_cache(maxsize=256)
def _definitions(file: str) -> Mapping[tuple[str, int], ast.FunctionDef]:
    """The functions of a file, by name and by every line that may count as their start."""
    try:
        with open(file, encoding="utf-8") as opened:
            tree = ast.parse(opened.read())
    except (OSError, SyntaxError, ValueError):  # interactive or generated code
        return {}
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return {(node.name, line): node for node in functions for line in _first_lines(node)}


def _first_lines(node: ast.FunctionDef) -> Iterator[int]:
    yield node.lineno
    yield from (decorator.lineno for decorator in node.decorator_list)


def _definition(code: CodeType) -> ast.FunctionDef | None:
    return _definitions(code.co_filename).get((code.co_name, code.co_firstlineno))
