"""Classes with a replayed forward, and how their instances are pickled."""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from prunegate.groups.torch_workarounds.copies import COPIED_BY_ATTRIBUTES

_SOURCE = "_prunegate_source"


def source_of(module: nn.Module) -> str | None:
    """The replayed code that replaces a module's own forward; None if its own forward runs."""
    result = getattr(type(module), _SOURCE, None)  # a class may have been derived from the replayed one
    return result if isinstance(result, str) else None


def replayed_class(cls: type[nn.Module], source: str, names: Mapping[str, Any], where: str) -> type[nn.Module]:
    """A subclass of ``cls`` of the same name with another forward.

    No Python module contains the class, so its instances are pickled as those of ``cls``, with what is needed to
    recreate the class.

    Args:
        source: Code that defines ``forward``.
        names: The globals of that code.
        where: The file name of the code in tracebacks.
    """
    if COPIED_BY_ATTRIBUTES in vars(cls):  # replayed before; the new forward replaces that one
        (cls,) = cls.__bases__
    body = dict(names)
    exec(compile(source, where, "exec"), body)

    def reduce(self: nn.Module, protocol: Any) -> str | tuple[Any, ...]:
        reduced = cls.__reduce_ex__(self, protocol)
        if isinstance(reduced, str) or type(self) is not made:  # a subclass has its own forward
            return reduced
        make, args, *state = reduced
        make, *args = (cls if part is made else part for part in (make, *args))
        return (_rebuilt, (source, _without_modules(names), where, make, *args), *state)

    made = type(
        cls.__name__,
        (cls,),
        {
            "forward": body["forward"],
            "__module__": cls.__module__,
            "__reduce_ex__": reduce,
            COPIED_BY_ATTRIBUTES: True,
            _SOURCE: source,
        },
    )
    return made


def _rebuilt(
    source: str, names: Mapping[str, Any], where: str, make: Callable[..., nn.Module], *args: Any
) -> nn.Module:
    """A module from ``make`` with the replayed forward; its state is set afterwards."""
    module = make(*args)
    module.__class__ = replayed_class(type(module), source, _with_modules(names), where)
    return module


class _Import(str):
    """The name of a Python module, as pickle does not accept the module itself."""


def _without_modules(names: Mapping[str, Any]) -> dict[str, Any]:
    return {n: _Import(v.__name__) if isinstance(v, types.ModuleType) else v for n, v in names.items()}


def _with_modules(names: Mapping[str, Any]) -> dict[str, Any]:
    return {n: importlib.import_module(v) if isinstance(v, _Import) else v for n, v in names.items()}
