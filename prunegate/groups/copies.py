"""Copies of a model whose tensors are replaced: by ones without data, by the very same, by any others."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from prunegate.errors import TraceError


def copy_with(model: nn.Module, change: Callable[[torch.Tensor], torch.Tensor] | None = None) -> nn.Module:
    """A deep copy whose parameters and buffers are ``change`` of the original ones; shared ones stay shared.

    Tensors that an earlier forward has left in attributes are copied without the graph that made them.

    Raises:
        TraceError: An attribute of the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    if change is not None:
        for _, module in modules_by_path(model):
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None and id(tensor) not in memo:
                    memo[id(tensor)] = change(tensor)
    try:
        copied = _copied(model, memo)
    except (RuntimeError, TypeError) as error:
        raise TraceError(
            f"the model cannot be copied: found {error}; expected a model that copy.deepcopy takes, for prunegate "
            "works on a copy. Remove what cannot be copied from its attributes: locks, open files, and tensors in "
            "containers of their own that were computed with gradients."
        ) from error
    assert isinstance(copied, nn.Module)
    return copied


def in_place_of(original: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """``data`` as a parameter if ``original`` is one, trained if that is."""
    return nn.Parameter(data, original.requires_grad) if isinstance(original, nn.Parameter) else data


def on_meta(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same form without data."""
    return in_place_of(tensor, tensor.detach().to("meta"))


def modules_by_path(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """What ``model.named_modules()`` gives, each module once by the first path it has, without nested generators."""
    found: dict[int, tuple[str, nn.Module]] = {}
    pending = [("", model)]
    while pending:
        path, module = pending.pop()
        if id(module) in found:
            continue
        found[id(module)] = (path, module)
        prefix = f"{path}." if path else ""
        pending += [(prefix + n, m) for n, m in reversed(module._modules.items()) if m is not None]
    return list(found.values())


_ATOMS = frozenset({bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device, torch.Size})
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """What `copy.deepcopy` gives, several times faster for modules and their plain containers."""
    cls = type(value)
    if cls in _ATOMS:
        return value
    known = memo.get(id(value))
    if known is not None:
        return known
    if cls is dict or cls is OrderedDict:
        made = memo[id(value)] = cls()
        for key, entry in value.items():
            made[key if type(key) in _ATOMS else _copied(key, memo)] = (
                entry if type(entry) in _ATOMS else _copied(entry, memo)
            )
        return made
    if cls is list:
        copies: list[Any] = []
        memo[id(value)] = copies
        copies.extend(_copied(entry, memo) for entry in value)
        return copies
    if cls is tuple and _ATOMS.issuperset(map(type, value)):
        return value
    if isinstance(value, nn.Module) and (cls in _plain or _is_plain(type(value))):
        twin = memo[id(value)] = object.__new__(cls)
        made = vars(twin)
        for key, entry in vars(value).items():
            if type(entry) in _ATOMS:
                made[key] = entry
            elif key in _OF_EVERY_MODULE and not entry:  # the many kinds of hooks, mostly
                made[key] = type(entry)()
            elif key != "_compiled_call_impl":  # `torch.compile` in place, which copies do not inherit
                made[key] = _copied(entry, memo)
        return twin
    if isinstance(value, torch.Tensor) and not value.is_leaf:
        # Kept from an earlier forward, and made anew by the next: `torch.nn.utils.weight_norm` does so.
        kept = memo[id(value)] = value.detach().clone()
        return kept
    return copy.deepcopy(value, memo)


_plain: set[type[nn.Module]] = set()
_OWN_WAYS = frozenset({"__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__", "__slots__"})


def _is_plain(cls: type[nn.Module]) -> bool:
    """Whether all of a module is its ``__dict__``: its class does not say how to copy or pickle it.

    What torch's own layers say in ``__setstate__`` is for old pickles, which lack attributes.
    """
    plain = all(
        base is nn.Module
        or (_OWN_WAYS.isdisjoint(vars(base)) and ("__setstate__" not in vars(base) or _is_of_torch(base)))
        for base in cls.__mro__[:-1]
    )
    if plain and _is_of_torch(cls):  # asked for often
        _plain.add(cls)
    return plain


def _is_of_torch(cls: type) -> bool:
    return cls.__module__.startswith("torch.nn.")
