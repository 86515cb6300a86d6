"""`rebound`: every kind of value that refers to a module is rebuilt with its twin; others are unchanged."""

from __future__ import annotations

import functools
import types
import weakref
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from prunegate.groups.torch_workarounds.rebinding import Rebinding, rebound, refers_to

OLD, NEW = nn.Linear(2, 2), nn.Linear(2, 2)
OTHER = nn.Linear(2, 2)
TWINS = {id(OLD): NEW}
Pair = namedtuple("Pair", "first second")


class Helper:
    def __init__(self, held: Any) -> None:
        self.held = held

    def call(self) -> Any:
        return self.held


@dataclass(frozen=True)
class Frozen:
    held: Any


class OwnCopy(Helper):
    def __deepcopy__(self, memo: dict[int, Any]) -> OwnCopy:
        return self


class Slots:
    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held


def closure(held: Any) -> Callable[[], Any]:
    return lambda: held


def with_default(held: Any) -> Callable[[], Any]:
    def function(found: Any = held) -> Any:
        return found

    return function


def with_keyword_default(held: Any) -> Callable[[], Any]:
    def function(*, found: Any = held) -> Any:
        return found

    return function


def with_attribute(held: Any) -> Callable[[], Any]:
    def function() -> None: ...

    function.held = held  # type: ignore[attr-defined]
    return function


def returned(held: Any) -> Any:
    return held


KINDS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "itself": (lambda m: m, lambda v: v),
    "list": (lambda m: [1, m], lambda v: v[1]),
    "tuple": (lambda m: (1, m), lambda v: v[1]),
    "named tuple": (lambda m: Pair(1, m), lambda v: v.second),
    "dict": (lambda m: {"a": m}, lambda v: v["a"]),
    "ordered dict": (lambda m: OrderedDict(b=1, a=m), lambda v: v["a"]),
    "defaultdict": (lambda m: defaultdict(list, a=m), lambda v: v["a"]),
    "default factory": (lambda m: defaultdict(closure(m)), lambda v: v["absent"]),
    "set": (lambda m: {m}, lambda v: next(iter(v))),
    "frozenset": (lambda m: frozenset({m}), lambda v: next(iter(v))),
    "closure": (closure, lambda v: v()),
    "default": (with_default, lambda v: v()),
    "keyword default": (with_keyword_default, lambda v: v()),
    "attribute of a function": (with_attribute, lambda v: v.held),
    "decorated": (lambda m: functools.wraps(returned)(closure(m)), lambda v: v()),
    "cached": (lambda m: functools.cache(closure(m)), lambda v: v()),
    "partial's argument": (lambda m: functools.partial(returned, m), lambda v: v()),
    "partial's keyword": (lambda m: functools.partial(returned, held=m), lambda v: v()),
    "partial's function": (lambda m: functools.partial(closure(m)), lambda v: v()),
    "bound method": (lambda m: m.forward, lambda v: v.__self__),
    "bound closure": (lambda m: types.MethodType(with_default(m), OTHER), lambda v: v.__func__.__defaults__[0]),
    "helper's method": (lambda m: Helper(m).call, lambda v: v()),
    "built-in method": (lambda m: [m].copy, lambda v: v()[0]),
    "plain object": (Helper, lambda v: v.held),
    "frozen dataclass": (Frozen, lambda v: v.held),
    "namespace": (lambda m: types.SimpleNamespace(held=m), lambda v: v.held),
    "weak reference": (weakref.ref, lambda v: v()),
    "weak method": (lambda m: weakref.WeakMethod(m.forward), lambda v: v().__self__),
    "nested": (lambda m: [{"a": (functools.partial(closure(Helper([m]))),)}], lambda v: v[0]["a"][0]().held[0]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_that_refers_to_a_module_refers_to_its_twin(kind: str) -> None:
    made, held = KINDS[kind]
    value = made(OLD)
    found = rebound(value, TWINS)
    assert found is not value
    assert type(found) is type(value)
    assert held(found) is NEW
    assert held(value) is OLD
    assert refers_to(value, TWINS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_that_does_not_is_left_as_it_is(kind: str) -> None:
    value = KINDS[kind][0](OTHER)
    assert rebound(value, TWINS) is value
    assert not refers_to(value, TWINS)


@pytest.mark.parametrize(
    "value",
    [3, "text", None, nn.Sequential(OLD), torch.ones(2), Helper, torch, len, OwnCopy(OLD), Slots(OLD)],
    ids=lambda value: type(value).__name__,
)
def test_other_values_are_left_as_they_are(value: Any) -> None:
    assert rebound(value, TWINS) is value
    assert not refers_to(value, TWINS)


def test_a_tensor_is_replaced_in_a_closure() -> None:
    twin = torch.zeros(1)
    assert rebound(closure(OLD.weight), {id(OLD.weight): twin})() is twin


def test_a_function_keeps_what_it_is() -> None:
    def function(a: int, b: Any = OLD, *, c: str = "c") -> Any:
        """What it does."""
        return a, b, c, OLD

    function.note = "kept"  # type: ignore[attr-defined]
    found = rebound(function, TWINS)
    assert found(1) == (1, NEW, "c", OLD)  # a global is not followed
    for name in ("__code__", "__globals__", "__kwdefaults__", "__dict__", *functools.WRAPPER_ASSIGNMENTS):
        assert getattr(found, name) == getattr(function, name), name


def test_a_function_may_refer_to_itself() -> None:
    held = OLD

    def function(again: bool) -> Any:
        return function(False) if again else (function, held)

    itself, module = rebound(function, TWINS)(True)
    assert module is NEW
    assert itself(False) == (itself, NEW)
    assert itself is not function


def test_functions_may_refer_to_each_other() -> None:
    held = OLD

    def first() -> Any:
        return second

    def second() -> Any:
        return first, held

    found = rebound(first, TWINS)
    assert found()()[0] is found
    assert found()()[1] is NEW


def test_closures_share_a_cell_afterwards() -> None:
    current = OLD

    def read() -> Any:
        return current

    def write(module: nn.Module) -> None:
        nonlocal current
        current = module

    new_read, new_write = rebound((read, write), TWINS)
    assert new_read() is NEW
    new_write(OTHER)
    assert new_read() is OTHER
    assert read() is OLD


def test_a_cell_in_which_nothing_is_replaced_stays_shared_with_the_original() -> None:
    held, count = OLD, 0

    def function() -> Any:
        nonlocal count
        count += 1
        return held

    assert rebound(function, TWINS)() is NEW
    assert count == 1


def test_a_cell_may_be_empty() -> None:
    def made() -> Callable[[], Any]:
        held = OLD

        def function() -> Any:
            return held, later

        if not held:
            later = 1
        return function

    found = rebound(made(), TWINS)
    with pytest.raises(NameError):
        found()


def test_cycles_end() -> None:
    items: list[Any] = [OLD]
    items.append((items,))
    helper = Helper(items)
    items.append(helper)
    helper.me = helper  # type: ignore[attr-defined]
    found = rebound(items, TWINS)
    assert found[0] is NEW
    assert found[1][0] is found
    assert found[2].held is found
    assert found[2].me is found[2]
    assert found[2] is not helper
    empty: list[Any] = []
    empty.append(empty)
    assert rebound(empty, TWINS) is empty


def test_a_shared_value_stays_shared_within_one_call_and_within_one_rebinding() -> None:
    shared = closure(OLD)
    first, second = rebound([shared, shared], TWINS)
    assert first is second is not shared
    rebind = Rebinding(TWINS)
    assert rebind({"a": shared})["a"] is rebind([shared])[0]


def test_an_object_that_stands_for_itself_is_not_followed() -> None:
    kept = [OLD]
    value = closure(kept)
    assert rebound(value, {**TWINS, id(kept): kept}) is value


def test_a_dead_weak_reference_is_left_as_it_is() -> None:
    module = nn.Linear(2, 2)
    references = weakref.ref(module), weakref.WeakMethod(module.forward)
    del module
    assert references[0]() is None
    assert rebound(references, TWINS) is references
    assert not refers_to(references, TWINS)


def test_a_handle_follows_the_dict_of_its_hook() -> None:
    module, twin = nn.Linear(2, 2), nn.Linear(2, 2)
    handle = module.register_forward_hook(print)
    twin._forward_hooks.update(module._forward_hooks)
    found = rebound([handle], {id(module._forward_hooks): twin._forward_hooks})[0]
    assert type(found) is RemovableHandle
    found.remove()
    assert not twin._forward_hooks
    assert module._forward_hooks


def test_a_deep_structure_is_followed_once() -> None:
    value: Any = closure(OLD)
    for _ in range(60):  # 2**60 ways through it
        value = [value, value]
    assert refers_to(value, TWINS)
    assert rebound(value, TWINS)[0] is not value[0]
