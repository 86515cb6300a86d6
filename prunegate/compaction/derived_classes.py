"""Subclasses of a module's class with another forward, created while a model is fixed up.

No Python module contains such a class, so its instances are pickled as those of the class it is derived from.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import nn

from prunegate.groups.torch_workarounds.copies import COPIED_BY_ATTRIBUTES

# Prefix of the attributes that such a forward uses.
OWN = "_prunegate"
_MAKERS: dict[type, Callable[[Any], Callable[..., Any]]] = {}


def derive(module: nn.Module, make_forward: Callable[[Any], Callable[..., Any]]) -> None:
    """Give a module the forward that ``make_forward`` makes for its class; does nothing the second time.

    Args:
        make_forward: A function that pickle can find by name.
    """
    cls: Any = type(module)
    if _MAKERS.get(cls) is not make_forward:
        module.__class__ = _derived(cls, make_forward)


def is_derived(module: nn.Module, make_forward: Callable[[Any], Callable[..., Any]]) -> bool:
    """Whether a module, or a class that it derives from, has this forward."""
    return any(_MAKERS.get(cls) is make_forward for cls in type(module).__mro__)


def forwards_of(module: nn.Module) -> list[str]:
    """The names of the functions that made a module's forward, outermost first."""
    return [_MAKERS[cls].__name__ for cls in type(module).__mro__ if cls in _MAKERS]


@lru_cache(maxsize=4096)
def _derived(cls: Any, make_forward: Callable[[Any], Callable[..., Any]]) -> type[nn.Module]:
    def reduce(self: Any, protocol: int) -> Any:
        reduced = cls.__reduce_ex__(self, protocol)
        if isinstance(reduced, str) or type(self) is not made:  # a subclass pickles in its own way
            return reduced
        make, arguments, *state = reduced
        parts = (cls if part is made else part for part in (make, *arguments))
        own = _left_out(self, state[0] if state else None)
        if own:
            return _unpickled_with, (own, cls, make_forward, *parts), *state
        return _unpickled, (cls, make_forward, *parts), *state

    forward: Any = make_forward(cls)
    forward.__signature__ = inspect.signature(cls.forward)
    body = {
        "forward": forward,
        "__reduce_ex__": reduce,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        COPIED_BY_ATTRIBUTES: True,
    }
    made: type[nn.Module] = type(cls.__name__, (cls,), body)
    _MAKERS[made] = make_forward
    return made


def _left_out(module: nn.Module, state: Any) -> dict[str, Any]:
    """Attributes of the forward missing from the state, as a class may define its own state, like einops' layers."""
    attributes = state[0] if isinstance(state, tuple) else state
    kept = attributes if isinstance(attributes, dict) else {}
    return {name: value for name, value in vars(module).items() if name.startswith(OWN) and name not in kept}


def _unpickled_with(own: dict[str, Any], *parts: Any) -> Any:
    module = _unpickled(*parts)
    vars(module).update(own)
    return module


def _unpickled(cls: Any, make_forward: Any, *parts: Any) -> Any:
    derived = _derived(cls, make_forward)
    make, *arguments = (derived if part is cls else part for part in parts)
    return make(*arguments)
