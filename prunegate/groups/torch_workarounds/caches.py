"""Process-wide caches in which a model's code keeps results for the next call.

A table that was computed on tensors without data must not reach a real run, nor the reverse, so these caches are
emptied around runs without data.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

_CACHED = type(functools.cache(len))
_NOT_LOOKED_INTO = frozenset({"torch", "builtins", "prunegate"})


def caches_of(model: nn.Module) -> list[Any]:
    """The `functools.lru_cache`s of the classes of a model's modules, and of the files that define them."""
    classes = {base for kind in {type(module) for module in model.modules()} for base in kind.__mro__}
    own = [cls for cls in classes if cls.__module__.partition(".")[0] not in _NOT_LOOKED_INTO]
    files = [sys.modules[name] for name in {cls.__module__ for cls in own} if name in sys.modules]
    held = (value for holder in (*own, *files) for value in vars(holder).values())
    return list({id(cache): cache for cache in _caches_among(held)}.values())


def _caches_among(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, staticmethod | classmethod):
            value = value.__func__
        if isinstance(value, _CACHED):
            yield value
        elif isinstance(value, types.FunctionType):
            for cell in value.__closure__ or ():
                try:
                    content = cell.cell_contents
                except ValueError:  # not assigned yet
                    continue
                if isinstance(content, _CACHED):
                    yield content
