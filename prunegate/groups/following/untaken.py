"""Branches of a model's code that no traced run took and that would mix channels.

A mask is applied where a traced run reads channels: at a layer's weight, or at the call of a function such as ``mean``.
A call in a branch that other sizes or arguments would take appears in none of the runs, so it is searched for in the
source (`prunegate.groups.following.reading`): conditions on sizes and on arguments of the call, and in their branches
calls of functions that mix or pick channels, at positions where no run made such a call. Conditions on how a module was
built (``self.pre_norm``) do not count, as they do not change between calls.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import nn

from prunegate.groups.following.lines_run import LinesRun
from prunegate.groups.following.reading import Search, Unrun
from prunegate.groups.following.source_code import own_forward
from prunegate.groups.torch_workarounds.copies import modules_by_path


@dataclass(frozen=True)
class UntakenBranch:
    """Calls under one condition that no traced run made.

    Attributes:
        module: Path of a module with this code.
        condition: Source of the condition.
        file: The file's path.
        line: Line of the first call.
        calls: Source of the calls.
    """

    module: str
    condition: str
    file: str
    line: int
    calls: tuple[str, ...]

    def __str__(self) -> str:
        file = self.file.replace("\\", "/").rsplit("/", 1)[-1]
        more = f" and {len(self.calls) - 1} more" if len(self.calls) > 1 else ""
        return (
            f"`{self.calls[0]}` ({file}, line {self.line}){more} depends on `{self.condition}` and ran in none of the "
            "traced runs, so its result is not proved. If you need it, pass wrap() a call that runs it: "
            "other_calls=[...]"
        )


def untaken_branches(model: nn.Module, ran: Collection[str], lines: LinesRun) -> tuple[UntakenBranch, ...]:
    """Calls that mix channels in branches that no traced run took.

    Args:
        ran: Paths of the modules that ran.
    """
    modules = {path: module for path, module in modules_by_path(model) if path in ran}
    search = Search(lines, frozenset(map(id, modules.values())))
    of_model = _arguments(model)
    for path, module in modules.items():
        if path == "":  # what the user hands in has no channels that could be removed
            search.add_forward(path, module, frozenset(of_model), frozenset())
        else:
            own = _arguments(module)
            search.add_forward(path, module, frozenset(), frozenset(own[:1]) | (frozenset(own) - frozenset(of_model)))
    search.run()
    by_condition: dict[Any, list[Unrun]] = {}
    for one in search.unrun.values():
        by_condition.setdefault((one.module, one.condition, one.file), []).append(one)
    results = []
    for (path, condition, file), some in by_condition.items():
        some.sort(key=lambda one: one.line)
        results.append(UntakenBranch(path, condition, file, some[0].line, tuple(one.call for one in some)))
    return tuple(results)


def _arguments(module: nn.Module) -> Sequence[str]:
    forward, is_method = own_forward(module)
    return () if forward is None else _parameters(forward)[is_method:]


@lru_cache(maxsize=1024)
def _parameters(function: Any) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a forward that is not Python code
        return ()
