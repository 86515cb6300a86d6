"""Modules whose own code still runs, with the sizes rewritten that it passes to torch functions.

Code that has sizes as literals, or derives them (``C // num_heads``), makes tensors of wrong shapes when channels are
cut. Such a module keeps its forward and, as a subclass of the same name, its class; while the forward runs, a function
mode rewrites the numbers by rules (`prunegate.compaction.size_rules`). So branches, arguments, other lengths, custom
autograd functions, checkpointing and compilation work as in the model's code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunegate.compaction.attention_calls import attend_with
from prunegate.compaction.derived_classes import derive
from prunegate.compaction.experts import BY_EXPERTS, of_any_width
from prunegate.compaction.size_rules import SizeRule, applied, first_tensor, numbers_in, shape_of, with_numbers
from prunegate.gates import RunningMode, resume_in_recomputation, running_modes
from prunegate.groups.following.size_calls import SCALED, SIZED

_RULES = "_prunegate_sizes"
_FORWARD = "_prunegate_own_forward"
# `prunegate.groups.function_name`, as far as needed here, in a form that compilers can trace.
_OPERATORS = {f"__{name}__": name for name in SIZED | SCALED}


class RewriteSizes(RunningMode):
    """Rewrites numbers in the calls that one module's own code makes.

    Calls of its child modules are not affected: children with rules run under their own mode, and only the innermost
    mode acts.

    Args:
        turns: The number of calls so far, for calls that look the same.
    """

    def __init__(self, rules: Sequence[SizeRule], turns: Mapping[Any, int] | None = None) -> None:
        super().__init__()
        self.turns: dict[Any, int] = dict(turns or {})
        self.rules: dict[str, list[SizeRule]] = {}
        for rule in rules:
            self.rules.setdefault(rule.function, []).append(rule)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        name = _OPERATORS.get(name, name)
        kwargs = kwargs or {}
        if name in BY_EXPERTS and innermost() is self:
            return of_any_width(func, *args, **kwargs)
        if name not in self.rules or innermost() is not self:
            return func(*args, **kwargs)
        given = numbers_in((args, kwargs))
        shape = shape_of(first_tensor(args, kwargs))
        for rule in self.rules[name]:
            if rule.fits(shape, given) and (rule.turn is None or rule.turn == self.turns.get(rule.looks, 0)):
                if rule.turn is not None:
                    self.turns[rule.looks] = rule.turn + 1
                return call_changed(rule, func, args, kwargs, given)
        return func(*args, **kwargs)

    def again(self) -> RewriteSizes:
        """A mode for rerunning the module's code in a backward pass."""
        return RewriteSizes([rule for rules in self.rules.values() for rule in rules], self.turns)


def innermost() -> RewriteSizes | None:
    """The mode of the innermost module with one."""
    result = None
    for mode in running_modes():
        if isinstance(mode, RewriteSizes):
            result = mode
    return result


def call_changed(rule: SizeRule, func: Callable[..., Any], args: Any, kwargs: Any, given: Sequence[Any]) -> Any:
    """The result of a call with the numbers that a rule gives it."""
    change = rule.change
    if change.sections is not None:
        tensor = first_tensor(args, kwargs)
        assert tensor is not None
        return torch.split(tensor, list(change.sections), change.dim)
    if change.heads is not None:
        return attend_with(change.heads, *args, **kwargs)
    if change.is_none:
        return func(*args, **kwargs)
    args, kwargs = with_numbers((args, kwargs), iter(applied(change, given)))
    result = func(*args, **kwargs)
    if change.positions is not None:
        result = result.index_select(
            change.dim, torch.tensor(change.positions, dtype=torch.int64, device=result.device)
        )
    return result


def resize(module: nn.Module, rules: Sequence[SizeRule]) -> None:
    """Make a module's forward run under rules, which replace any earlier ones."""
    attributes = vars(module)
    attributes[_RULES] = tuple(rules)
    if "forward" in attributes:  # some modules choose one of their methods at construction
        attributes[_FORWARD] = attributes.pop("forward")
    derive(module, _resized_forward)


def rules_of(module: nn.Module) -> tuple[SizeRule, ...]:
    """The rules that a module's forward runs under."""
    results: tuple[SizeRule, ...] = vars(module).get(_RULES, ())
    return results


def _resized_forward(cls: Any) -> Callable[..., Any]:
    resume_in_recomputation()

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        own = getattr(self, _FORWARD, None)  # not through ``__dict__``, as a twin replaces the module while it is gated
        with RewriteSizes(self._prunegate_sizes):
            return cls.forward(self, *args, **kwargs) if own is None else own(*args, **kwargs)

    return forward
