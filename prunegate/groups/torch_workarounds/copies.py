"""Copies of a model with replaced tensors: without data, shared with the original, or any others."""

from __future__ import annotations

import copy
import enum
import functools
import types
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from prunegate.errors import TraceError
from prunegate.groups.torch_workarounds.rebinding import Rebinding, handle_on, reached


def copy_with(model: nn.Module, change: Callable[[torch.Tensor], torch.Tensor] | None = None) -> nn.Module:
    """A deep copy whose parameters and buffers are ``change`` of the original ones; shared ones stay shared.

    Functions, weak references and hook handles that refer to modules of the model refer to the copy's modules in the
    copy, so running it does not change the original. Tensors that an earlier forward pass has stored in attributes are
    copied without their autograd graph.

    Raises:
        TraceError: An attribute of the model cannot be copied.
    """
    copier = _Copier(model, change)
    try:
        copied = copier.copied(model)
        copier.finish()
    except (RuntimeError, TypeError) as error:
        raise TraceError(
            f"the model cannot be copied: {error}. prunegate works on a copy, so copy.deepcopy has to support the "
            "model. Remove what cannot be copied from its attributes: locks, open files, and tensors in custom "
            "containers that were computed with gradients."
        ) from error
    assert isinstance(copied, nn.Module)
    return copied


def in_place_of(original: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """``data`` as a parameter if ``original`` is one, with its ``requires_grad``."""
    return nn.Parameter(data, original.requires_grad) if isinstance(original, nn.Parameter) else data


def the_same(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, for copies of a model that share its tensors."""
    return tensor


def on_meta(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same form without data."""
    return in_place_of(tensor, tensor.detach().to("meta"))


def modules_by_path(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """What ``model.named_modules()`` gives, each module once under its first path, but without nested generators."""
    results: dict[int, tuple[str, nn.Module]] = {}
    pending = [("", model)]
    while pending:
        path, module = pending.pop()
        if id(module) in results:
            continue
        results[id(module)] = (path, module)
        prefix = f"{path}." if path else ""
        pending += [(prefix + n, m) for n, m in reversed(module._modules.items()) if m is not None]
    return list(results.values())


_ATOMS = frozenset({bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device, torch.Size})
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class _Copier:
    """Copies one model like `copy.deepcopy`, but eight times faster, and with functions that refer to the copy.

    `wrap` makes about ten copies. Each case that is not left to `copy.deepcopy` makes copying a resnet50 at least twice
    as fast; lists are handled because they may contain tensors from an earlier forward pass.

    Attributes:
        memo: The copy of every object so far, by the id of the original.
        has_others: Whether there is anything other than modules and plain containers of tensors and atoms.
    """

    def __init__(self, model: nn.Module, change: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
        self.memo: dict[int, Any] = {}
        self.has_others = False
        self._model = model
        self._change = change
        self._handles: list[RemovableHandle] = []
        self._change_tensors(model)

    def _change_tensors(self, model: nn.Module) -> None:
        if self._change is None:
            return
        memo, known, pending = self.memo, set[int](), [model]
        while pending:
            module = pending.pop()
            if id(module) in known:
                continue
            known.add(id(module))
            pending += [child for child in reversed(module._modules.values()) if child is not None]
            for stored in (module._parameters, module._buffers):
                for tensor in stored.values():
                    if tensor is not None and id(tensor) not in memo:
                        memo[id(tensor)] = self._change(tensor)

    def copied(self, value: Any) -> Any:
        """Like `copy.deepcopy`, except that functions, weak references and hook handles are not changed."""
        cls = type(value)
        if cls in _ATOMS:
            return value
        memo = self.memo
        known = memo.get(id(value))
        if known is not None:
            return known
        if cls is dict or cls is OrderedDict:
            made = memo[id(value)] = cls()
            for key, entry in value.items():
                made[key if type(key) in _ATOMS else self.copied(key)] = (
                    entry if type(entry) in _ATOMS else self.copied(entry)
                )
            return made
        if cls is list:
            copies: list[Any] = []
            memo[id(value)] = copies
            copies.extend(map(self.copied, value))
            return copies
        if cls is tuple and _ATOMS.issuperset(map(type, value)):
            return value
        if issubclass(cls, nn.Module) and (cls in _plain or _is_plain(cls)):
            twin = memo[id(value)] = object.__new__(cls)
            made = vars(twin)
            made.update(vars(value))
            made.pop("_compiled_call_impl", None)  # in-place `torch.compile`, which copies do not inherit
            for key, entry in vars(value).items():
                kind = type(entry)
                if kind in _ATOMS:
                    continue
                if key in _OF_EVERY_MODULE and not entry:  # mostly the many kinds of hooks
                    made[key] = kind()
                elif key in made:
                    made[key] = self.copied(entry)
            return twin
        if isinstance(value, torch.Tensor):
            if value.is_leaf:
                return copy.deepcopy(value, memo)
            # From an earlier forward pass, and replaced by the next, as in `torch.nn.utils.weight_norm`.
            kept = memo[id(value)] = value.detach().clone()
            return kept
        self.has_others |= not _is_inert(value)
        if cls is RemovableHandle:
            self._handles.append(value)
            return value
        return copy.deepcopy(value, memo)

    def finish(self) -> None:
        """Make functions, weak references and handles in the copies refer to the copies."""
        if not self.has_others:
            return
        while hidden := self._hidden_modules():
            for module in hidden:
                self._change_tensors(module)
                self.memo[id(module)] = self.copied(module)
        for one in self._copies():
            if type(one) is RemovableHandle:  # torch cannot copy it again once its dicts have been deleted
                one.extra_dict_ref = tuple(ref for ref in one.extra_dict_ref if one.id in (ref() or ()))
        twins = {**self.memo, **{id(one): one for one in self._copies()}}
        twins.update((id(handle), handle_on(handle, self.memo)) for handle in self._handles)
        rebind = Rebinding(twins)
        for value, replace in self._doubtful():
            result = rebind(value)
            if result is not value:
                replace(result)

    def _hidden_modules(self) -> list[nn.Module]:
        """The modules that only functions refer to, which may have statistics that a forward pass changes.

        Modules that contain the model, or from which it was copied, are excluded: hooks refer to them, but the model
        does not compute with them.
        """
        known = {*self.memo, *map(id, self._copies())}

        def is_known(value: Any) -> bool:
            return id(value) in known

        return [
            value
            for value in reached((value for value, _ in self._doubtful()), is_known)
            if isinstance(value, nn.Module)
            and not is_known(value)
            and not any(_are_alike(module, self._model) for module in value.modules())
        ]

    def _copies(self) -> list[Any]:
        """The copies whose contents can be replaced."""
        own = id(self.memo)  # where `copy.deepcopy` keeps originals alive
        return [one for key, one in self.memo.items() if key != own and not isinstance(one, _FIXED)]

    def _doubtful(self) -> list[tuple[Any, Callable[[Any], object]]]:
        """Objects in the copies that may not be copies, each with the function that replaces it."""
        copies = self._copies()
        fine = set(map(id, copies))
        return [
            (value, replace)
            for one in copies
            for value, replace in _contents(one)
            if id(value) not in fine
            and not isinstance(value, torch.Tensor)
            and not (type(value) in _CONTAINERS and not value)
        ]


def _are_alike(module: nn.Module, model: nn.Module) -> bool:
    """Whether a module is the model, or may be the original of the model."""
    names = list(model._modules)
    return module is model or (
        bool(names) and type(module).__name__ == type(model).__name__ and list(module._modules) == names
    )


def _is_inert(value: Any) -> bool:
    """Whether ``value`` neither is nor contains a function that could refer to a copied object."""
    result = reached(value if type(value) is set else [value], lambda one: isinstance(one, enum.Enum))
    return all(type(one) in _INERT or isinstance(one, enum.Enum | type | types.ModuleType) for one in result)


_INERT = _ATOMS | {tuple, frozenset, functools.partial, types.FunctionType, types.CellType, types.BuiltinFunctionType}
_CONTAINERS = frozenset({dict, OrderedDict, list, set, tuple})
_FIXED = (torch.Tensor, type, tuple, frozenset, functools.partial, types.MethodType, types.FunctionType)


def _contents(value: Any) -> Iterator[tuple[Any, Callable[[Any], object]]]:
    """The contents of an object of any class, each with the function that replaces it."""
    if isinstance(value, dict):
        for key, entry in tuple(dict.items(value)):
            if type(entry) not in _ATOMS:
                yield entry, functools.partial(dict.__setitem__, value, key)
    elif isinstance(value, list):
        for place, entry in enumerate(tuple(value)):
            if type(entry) not in _ATOMS:
                yield entry, functools.partial(list.__setitem__, value, place)
    elif isinstance(value, set):
        for entry in tuple(value):
            yield entry, functools.partial(_exchange, value, entry)
    if isinstance(value, defaultdict):
        yield value.default_factory, functools.partial(setattr, value, "default_factory")
    if type(value).__dictoffset__:
        attributes = vars(value)
        for key, entry in tuple(attributes.items()):
            if type(entry) not in _ATOMS:
                yield entry, functools.partial(attributes.__setitem__, key)
    for base in type(value).__mro__:
        if vars(base).get("__slots__"):
            for slot in vars(base).values():
                if isinstance(slot, types.MemberDescriptorType) and hasattr(value, slot.__name__):
                    yield slot.__get__(value), functools.partial(slot.__set__, value)


def _exchange(entries: set[Any], old: Any, new: Any) -> None:
    entries.remove(old)
    entries.add(new)


_plain: set[type[nn.Module]] = set()
# A class with this attribute defines how to pickle its instances only because pickle would not find the class.
COPIED_BY_ATTRIBUTES = "_prunegate_copied_by_attributes"
_OWN_WAYS = frozenset({"__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__", "__slots__"})


def _is_plain(cls: type[nn.Module]) -> bool:
    """Whether ``__dict__`` is all of a module's state: its class does not customise copying or pickling.

    ``__setstate__`` of torch's own layers only adds attributes that are missing in old pickles.
    """
    plain = all(
        base is nn.Module
        or COPIED_BY_ATTRIBUTES in vars(base)
        or (_OWN_WAYS.isdisjoint(vars(base)) and ("__setstate__" not in vars(base) or _is_of_torch(base)))
        for base in cls.__mro__[:-1]
    )
    if plain and _is_of_torch(cls):  # asked for often
        _plain.add(cls)
    return plain


def _is_of_torch(cls: type) -> bool:
    return cls.__module__.startswith("torch.nn.")
