"""Registering custom operations with torch, which are opaque to tracers, counters and compilers.

`torch.library.custom_op` is not used because its first call imports torch's compiler, which takes more than a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

_library = torch.library.Library("prunegate", "DEF")  # type: ignore[no-untyped-call]


def are_followed() -> bool:
    """Whether operations are being traced or transformed, so that ordinary ones have to be used."""
    following = torch.compiler.is_compiling()
    return (
        following
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


class Operation:
    """A function that is called directly, or through torch's dispatcher if a mode observes operations."""

    def __init__(self, function: Callable[..., Any], overload: torch._ops.OpOverload) -> None:
        self._function, self._overload = function, overload

    def __call__(self, *arguments: Any) -> Any:
        plain = _get_current_dispatch_mode() is None and all(map(_is_plain, arguments))
        return self._function(*arguments) if plain else self._overload(*arguments)


def _is_plain(argument: Any) -> bool:
    if isinstance(argument, (list, tuple)):
        return all(map(_is_plain, argument)) if argument and isinstance(argument[0], torch.Tensor) else True
    return not isinstance(argument, torch.Tensor) or type(argument) in (torch.Tensor, nn.Parameter)


def operation(schema: str, form: Callable[..., Any]) -> Callable[[Callable[..., Any]], Operation]:
    """Register a function as ``prunegate::name`` on all devices, without a gradient.

    Args:
        schema: The operation's name, arguments and results, in torch's schema language.
        form: Returns fake results for fake arguments.
    """
    name = schema.partition("(")[0]

    def register(function: Callable[..., Any]) -> Operation:
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
        _library.impl(name, function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"prunegate::{name}", form, lib=_library)
        return Operation(function, getattr(torch.ops.prunegate, name).default)

    return register
