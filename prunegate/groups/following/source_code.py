"""The source of a model's code, as Python parses it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

from torch import nn


def is_of(function: Any, *packages: str) -> bool:
    """Whether a function or class comes from one of some packages; code that a program made comes from none."""
    return (getattr(function, "__module__", None) or "").startswith(packages)


def own_forward(module: nn.Module) -> tuple[Any, bool]:
    """The forward of a module as its author wrote it, and whether it is a method of its class.

    One that was put on the instance takes its place; cut and gated modules may have one around it. None for torch's own
    layers.
    """
    replaced = vars(module).get("forward")
    if isinstance(replaced, FunctionType):
        return replaced, False
    if is_of(type(module), "torch."):
        return None, False
    for cls in type(module).__mro__:
        forward = vars(cls).get("forward")
        if forward is not None and not is_of(forward, "prunegate.compaction.", "prunegate.gates."):
            return forward, True
    return None, False


def flows_of(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """What names are given here, and from which expression."""
    if isinstance(node, ast.Assign):
        yield from ((target, node.value) for target in node.targets)
    elif isinstance(node, (ast.AugAssign, ast.AnnAssign, ast.NamedExpr)):
        if node.value is not None:
            yield node.target, node.value
    elif isinstance(node, (ast.For, ast.comprehension)):
        yield node.target, node.iter
    elif isinstance(node, ast.withitem) and node.optional_vars is not None:
        yield node.optional_vars, node.context_expr


def first_argument(tree: ast.FunctionDef) -> str | None:
    arguments = (*tree.args.posonlyargs, *tree.args.args)
    return arguments[0].arg if arguments else None


def picks_channels(index: ast.expr) -> bool:
    """Whether an index takes some of what may be channels: ``[..., :8]``, ``[:, :, 0]``."""
    if not isinstance(index, ast.Tuple):
        return False
    last = index.elts[-1]
    counted = any(isinstance(one, ast.Constant) and one.value is Ellipsis for one in index.elts[:-1])
    if isinstance(last, ast.Slice):
        return counted and any(bound is not None for bound in (last.lower, last.upper, last.step))
    return isinstance(last, ast.Constant) and isinstance(last.value, int) and (counted or len(index.elts) > 2)


def names_in(node: ast.AST) -> set[str]:
    """The variables that an expression names."""
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def leaves(statements: Sequence[ast.stmt]) -> bool:
    return bool(statements) and isinstance(statements[-1], (ast.Return, ast.Continue, ast.Break))


@lru_cache(maxsize=256)
def _definitions(file: str) -> Mapping[tuple[str, int], ast.FunctionDef]:
    """The functions of a file, by name and by every line at which they may be said to begin."""
    try:
        with open(file, encoding="utf-8") as opened:
            tree = ast.parse(opened.read())
    except (OSError, SyntaxError, ValueError):  # code that was typed in, or made by a program
        return {}
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return {(node.name, line): node for node in functions for line in _first_lines(node)}


def _first_lines(node: ast.FunctionDef) -> Iterator[int]:
    yield node.lineno
    yield from (decorator.lineno for decorator in node.decorator_list)


def definition(code: CodeType) -> ast.FunctionDef | None:
    return _definitions(code.co_filename).get((code.co_name, code.co_firstlineno))
