"""All tensors in a model's output, at any nesting depth."""

from __future__ import annotations

import inspect
import types
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, TypeAlias

import torch
from torch import nn

# The place of an output, and its sizes but the first.
Form: TypeAlias = tuple[str, tuple[int, ...]]

# Types that contain no outputs, though they may refer to tensors.
_CLOSED = (str, bytes, bool, int, float, complex, type(None), type, torch.dtype, torch.device, torch.Size, Enum,
           nn.Module, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType)  # fmt: skip


def named_tensors(outputs: Any, state: Collection[str] = ()) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in a returned object with its place, e.g. ``".features[0]"``, each once.

    Containers, mappings, dataclasses, named tuples and objects of any other class are searched: everything that a user
    can reach counts.

    Args:
        state: Names of parts that are the model's internal state, see `names_of_state`. Tensors are never such parts.
    """
    if isinstance(outputs, _CLOSED):
        return
    if isinstance(outputs, torch.Tensor):
        yield "", outputs
        return
    seen = {id(outputs)}
    for name, part in _parts(outputs):
        if name.strip(".[]'") not in state or isinstance(part, torch.Tensor):
            yield from _walk(part, name, seen)


def tensors_in(outputs: Any, state: Collection[str] = (), places: Collection[str] | None = None) -> list[torch.Tensor]:
    """Every tensor in a returned object, each once; only those at ``places`` if given.

    An object that has none of these places is of another form than the one that was chosen from, as some models return
    in training mode: all of it counts, so that a comparison never comes out well for want of anything to compare.
    """
    named = list(named_tensors(outputs, state))
    known = named if places is None else [(place, tensor) for place, tensor in named if place in places]
    return [tensor for _, tensor in known or named]


def forms_of(outputs: Any, state: Collection[str] = ()) -> frozenset[Form]:
    """The places of all tensors in a returned object, with their sizes but the first, the number of samples."""
    return frozenset((place, tuple(tensor.shape[1:])) for place, tensor in named_tensors(outputs, state))


def names_of_state(model: nn.Module) -> frozenset[str]:
    """Names of outputs that are state: objects which the model takes back as an argument of the same name.

    An example are the caches of language models (``past_key_values``). Their tensors may be smaller in a compact model,
    as only the model reads them.
    """
    return frozenset(inspect.signature(model.forward).parameters) - {"args", "kwargs"}


def _walk(value: Any, place: str, seen: set[int]) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, _CLOSED) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield place, value
        return
    for name, part in _parts(value):
        yield from _walk(part, place + name, seen)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", value[key]) for key in value)
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from ((f".{name}", getattr(value, name)) for name in value._fields)
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((f"[{number}]", part) for number, part in enumerate(value))
    elif is_dataclass(value):
        yield from ((f".{field.name}", getattr(value, field.name, None)) for field in fields(value))
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict) and not is_dataclass(value):
        known = set(value) if isinstance(value, Mapping) else set()  # outputs of transformers are both
        yield from ((f".{name}", part) for name, part in attributes.items() if name not in known)
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name) and not is_dataclass(value):
                yield f".{name}", getattr(value, name)
