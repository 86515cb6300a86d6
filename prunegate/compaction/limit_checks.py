"""Checks that make replayed modules refuse calls that differ from the traced ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunegate.compaction.cut_sizes import CutSizes
from prunegate.errors import LimitError
from prunegate.groups import Span, Value

_PLAIN = (bool, int, float, str)


class LimitCheck:
    """A forward pre-hook that compares the arguments of a call with those of the run.

    Args:
        path: The module's path, for messages.
        args, kwargs: For each argument, the sizes of a tensor in a list, or a plain value in a tuple; otherwise None.
    """

    def __init__(self, path: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.path, self.args, self.kwargs = path, tuple(args), dict(kwargs)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        if len(args) > len(self.args):
            raise LimitError(self._message(f"{len(args)} arguments", f"{len(self.args)}"))
        known: dict[Any, Any] = {**dict(enumerate(self.args)), **self.kwargs}
        given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        for key, value in given.items():
            self._compare(key, value, known)

    def _compare(self, key: Any, value: Any, known: Mapping[Any, Any]) -> None:
        place = f"argument {key + 1}" if isinstance(key, int) else key
        if key not in known:
            if value is not None:
                raise LimitError(self._message(f"{place}", "no such argument"))
            return
        expected = known[key]
        if isinstance(expected, list) and isinstance(value, torch.Tensor):
            sizes = tuple(value.shape)
            if len(sizes) != len(expected) or any(
                e is not None and e != s for e, s in zip(expected, sizes, strict=True)
            ):
                wanted = ", ".join("samples" if size is None else str(size) for size in expected)
                raise LimitError(self._message(f"{place} of shape {sizes}", f"({wanted})"))
        elif isinstance(expected, tuple) and not isinstance(value, torch.Tensor) and value != expected[0]:
            raise LimitError(self._message(f"{place} = {value!r}", f"{expected[0]!r}"))

    def _message(self, actual: str, expected: str) -> str:
        return (
            f"{self.path or 'the model'}: found {actual}, expected {expected}. This part of the compact model is "
            "replayed from the run on the example inputs, and only supports their sizes and arguments; see "
            "gated.limits. Wrap the dense model with inputs like these."
        )


def check_calls(module: nn.Module, path: str, span: Span, sizes: CutSizes) -> None:
    """Make a replayed module refuse unsupported calls."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, LimitCheck):  # from an earlier compaction
            del module._forward_pre_hooks[key], module._forward_pre_hooks_with_kwargs[key]
    args = [_form(argument, sizes) for argument in span.args]
    kwargs = {name: _form(argument, sizes) for name, argument in span.kwargs.items()}
    module.register_forward_pre_hook(LimitCheck(path, args, kwargs), with_kwargs=True)


def _form(argument: Any, sizes: CutSizes) -> Any:
    if isinstance(argument, Value):
        follows = sizes.follows_batch(argument.number)
        shape = sizes.shape(argument.number)
        return [None if free else size for size, free in zip(shape, follows, strict=True)]
    return (argument,) if isinstance(argument, _PLAIN) else None
