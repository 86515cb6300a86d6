"""Rebuilding values that refer to some objects so that they refer to the replacements.

`copy.deepcopy` treats functions and weak references as atoms: a closure in a copied model still calls the original.
`rebound` follows closures, default arguments, bound methods, partial functions, containers and plain objects. A value
without replacements is returned unchanged.
"""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

_ATOMS = frozenset({bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device, torch.Size})
_CACHED = type(functools.cache(len))
_OWN_WAYS = frozenset(
    """__copy__ __deepcopy__ __reduce__ __reduce_ex__ __getstate__ __setstate__ __getnewargs__ __getnewargs_ex__
    __new__""".split()
)
_HEAP_TYPE = 1 << 9  # CPython's Py_TPFLAGS_HEAPTYPE: the class was made by Python code


def rebound(value: Any, twins: Mapping[int, Any]) -> Any:
    """``value`` with objects in it replaced; ``value`` itself if there is nothing to replace.

    Args:
        twins: The replacements of objects (modules, tensors, ...), by the objects' ids.
    """
    twin = twins.get(id(value), value)
    if twin is not value or type(value) in _ATOMS or isinstance(value, nn.Module | torch.Tensor):
        return twin
    return Rebinding(twins)(value)


def refers_to(value: Any, ids: Container[int]) -> bool:
    """Whether ``value`` is one of the objects with these ids, or `rebound` finds one of them in it."""

    def is_one(one: Any) -> bool:
        referent = _referent(one)
        return id(one) in ids or (referent is not None and id(referent) in ids)

    return any(is_one(one) for one in reached([value], is_one))


def reached(values: Iterable[Any], is_end: Callable[[Any], bool]) -> Iterator[Any]:
    """All objects that `rebound` visits in ``values``, without the contents of those for which ``is_end`` is true."""
    pending = list(values)
    seen = set(map(id, pending))
    while pending:
        value = pending.pop()
        yield value
        for part in () if is_end(value) else _parts(value):
            if type(part) not in _ATOMS and id(part) not in seen:
                seen.add(id(part))
                pending.append(part)


class Rebinding:
    """`rebound` for several values, which preserves objects shared between them."""

    def __init__(self, twins: Mapping[int, Any]) -> None:
        """``twins`` as for `rebound`. An object may be its own replacement; then nothing inside it is replaced."""
        self._twins = twins
        self._made: dict[int, Any] = {}
        self._changes: dict[int, bool] = {}
        self._alive: list[Any] = []  # so that no other object gets a recorded id

    def __call__(self, value: Any) -> Any:
        """``value`` with objects in it replaced."""
        if type(value) in _ATOMS:
            return value
        if id(value) in self._twins:
            return self._twins[id(value)]
        if id(value) not in self._changes:
            self._search(value)
        if not self._changes[id(value)]:
            return value
        if id(value) not in self._made:
            made = self._remade(value)
            self._made.setdefault(id(value), made)  # a cycle through a tuple may have created it meanwhile
        return self._made[id(value)]

    def _search(self, value: Any) -> None:
        """Record for everything in ``value`` whether it leads to a replaced object."""
        holders: dict[int, list[int]] = {}
        changing: list[int] = []
        met = list(reached([value], self._is_known))
        for one in met:
            if self._is_replaced(one):
                changing.append(id(one))
            elif not self._is_known(one):
                for part in _parts(one):
                    holders.setdefault(id(part), []).append(id(one))
        result = set(changing)
        while changing:
            more = [holder for holder in holders.get(changing.pop(), ()) if holder not in result]
            result.update(more)
            changing += more
        for one in met:
            self._changes.setdefault(id(one), id(one) in result)
        self._alive += met

    def _is_known(self, value: Any) -> bool:
        return id(value) in self._twins or id(value) in self._changes

    def _is_replaced(self, value: Any) -> bool:
        if id(value) in self._twins:
            return self._twins[id(value)] is not value
        referent = _referent(value)
        return self._changes.get(id(value), False) or (
            referent is not None and self._twins.get(id(referent), referent) is not referent
        )

    def _remade(self, value: Any) -> Any:
        """Rebuild a value that changes. Objects that can be part of a cycle are registered before they are filled."""
        cls = type(value)
        if cls is types.FunctionType:
            return self._remade_function(value)
        if cls is types.MethodType:
            return types.MethodType(self(value.__func__), self(value.__self__))
        if cls is functools.partial:
            made = functools.partial(self(value.func), *map(self, value.args), **self._mapped(value.keywords))
            vars(made).update(self._mapped(vars(value)))
            return made
        if cls is dict or cls is OrderedDict or cls is defaultdict:
            entries: Any = cls(self(value.default_factory)) if cls is defaultdict else cls()
            self._made[id(value)] = entries
            entries.update(self._mapped(value))
            return entries
        if cls is list:
            items: list[Any] = []
            self._made[id(value)] = items
            items.extend(map(self, value))
            return items
        if cls is tuple or cls is set or cls is frozenset:
            return cls(map(self, value))
        if isinstance(value, tuple):
            return cls._make(map(self, value))
        if isinstance(value, types.BuiltinMethodType | types.MethodWrapperType):
            return getattr(self(value.__self__), value.__name__)
        if isinstance(value, _CACHED):
            cached = functools.lru_cache(**value.cache_parameters())(self(value.__wrapped__))
            vars(cached).update(self._mapped(vars(value)))
            return cached
        if cls is weakref.ref:
            return weakref.ref(self._twins[id(value())], value.__callback__)
        if cls is weakref.WeakMethod:
            return weakref.WeakMethod(types.MethodType(value().__func__, self._twins[id(value().__self__)]))
        if cls is RemovableHandle:
            return handle_on(value, self._twins)
        shallow = self._made[id(value)] = copy.copy(value)
        vars(shallow).update(self._mapped(vars(value)))
        return shallow

    def _remade_function(self, value: types.FunctionType) -> types.FunctionType:
        cells = []
        empty = []
        for cell in value.__closure__ or ():
            if self._changes[id(cell)] and id(cell) not in self._made:
                self._made[id(cell)] = types.CellType()
                empty.append(cell)
            cells.append(self._made.get(id(cell), cell))
        made = types.FunctionType(value.__code__, value.__globals__, value.__name__, None, tuple(cells) or None)
        self._made[id(value)] = made
        for cell in empty:  # only now, as the function may be in one of its own cells
            self._made[id(cell)].cell_contents = self(cell.cell_contents)
        for name in functools.WRAPPER_ASSIGNMENTS:
            setattr(made, name, getattr(value, name))
        made.__defaults__, made.__kwdefaults__ = self(value.__defaults__), self(value.__kwdefaults__)
        vars(made).update(self._mapped(vars(value)))
        return made

    def _mapped(self, entries: Mapping[Any, Any]) -> dict[Any, Any]:
        return {key: self(entry) for key, entry in entries.items()}


def handle_on(handle: RemovableHandle, twins: Mapping[int, Any]) -> RemovableHandle:
    """A handle of the same hook in the twins of its dicts; a handle that removes nothing if there are none."""
    first, *more = (ref() for ref in (handle.hooks_dict_ref, *handle.extra_dict_ref))
    made = RemovableHandle.__new__(RemovableHandle)
    # Without dicts that are deleted or do not contain the hook, as torch cannot copy a handle of deleted dicts.
    extra = tuple(twins[id(d)] for d in more if d is not None and handle.id in d and id(d) in twins)
    made.__setstate__((None if first is None else twins.get(id(first)), handle.id, extra))
    return made


def _referent(value: Any) -> Any:
    """The target of ``value`` if it is a weak reference."""
    cls = type(value)
    if cls is weakref.ref:
        return value()
    if cls is weakref.WeakMethod:
        method = value()
        return None if method is None else method.__self__
    if cls is RemovableHandle:
        return value.hooks_dict_ref()
    return None


def _parts(value: Any) -> Iterable[Any]:
    """The replaceable objects in ``value``."""
    cls = type(value)
    if cls in _ATOMS or isinstance(value, nn.Module | torch.Tensor | type | types.ModuleType):
        return ()
    if cls is types.FunctionType:
        return (*(value.__closure__ or ()), value.__defaults__, value.__kwdefaults__, *vars(value).values())
    if cls is types.CellType:
        try:
            return (value.cell_contents,)
        except ValueError:  # not assigned yet
            return ()
    if cls is types.MethodType:
        return (value.__func__, value.__self__)
    if cls is functools.partial:
        return (value.func, *value.args, *value.keywords.values(), *vars(value).values())
    if cls is defaultdict:
        return (value.default_factory, *value.values())
    if cls is dict or cls is OrderedDict:
        return tuple(value.values())
    if cls is list or cls is set or cls is frozenset or cls is tuple or (hasattr(cls, "_make") and _is_tuple(value)):
        return tuple(value)
    if isinstance(value, types.BuiltinMethodType | types.MethodWrapperType):
        return (value.__self__,)
    if isinstance(value, _CACHED):
        return tuple(vars(value).values())
    return tuple(vars(value).values()) if _is_plain(cls) else ()


def _is_tuple(value: Any) -> bool:
    return isinstance(value, tuple)


def _is_plain(cls: type) -> bool:
    """Whether ``__dict__`` is all of an object's state: its class is the user's and does not customise copying."""
    if cls is types.SimpleNamespace:
        return True
    return (
        cls.__module__.partition(".")[0] not in ("torch", "builtins")
        and cls.__dictoffset__ != 0
        and all(
            base.__flags__ & _HEAP_TYPE and _OWN_WAYS.isdisjoint(vars(base)) and not vars(base).get("__slots__")
            for base in cls.__mro__[:-1]
        )
    )
