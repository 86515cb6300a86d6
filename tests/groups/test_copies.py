"""`copy_with`: copies share nothing with the original that running them changes, whatever refers to its modules."""

from __future__ import annotations

import copy
import functools
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from prunegate.errors import TraceError
from prunegate.groups import copy_with, in_place_of, on_meta


class Helper:
    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)

    def hook(self, _module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return self.module(output)


class Slots:
    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class OwnState(nn.Module):
    """A user's module with a say in how it is copied."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "copied": True}


class Net(nn.Module):
    """Its batch norm is called by what `install` puts on it: `act` in its forward, or a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.act: Any = None

    def forward(self, x: torch.Tensor, times: float = 1.0) -> torch.Tensor:
        h = self.a(x * times)
        return self.b(h if self.act is None else self.act(h))

    def norm(self, *args: Any) -> torch.Tensor:
        return self.bn(args[-1])

    def norm_in_hook(self, _module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return self.bn(output)


def _function(net: Net) -> Callable[..., Any]:
    def function(x: torch.Tensor) -> torch.Tensor:
        return net.bn(x)

    return function


def _set(**attributes: Callable[[Net], Any]) -> Callable[[Net], None]:
    def install(net: Net) -> None:
        for name, made in attributes.items():
            setattr(net, name, made(net))

    return install


def _in_a_dict(net: Net) -> None:
    net.functions = {"norm": [_function(net)]}
    net.act = lambda x: net.functions["norm"][0](x)


def _default(net: Net) -> Callable[..., Any]:
    def function(x: torch.Tensor, module: nn.Module = net.bn) -> torch.Tensor:
        return module(x)

    return function


def _helper_in_a_closure(net: Net) -> Callable[..., Any]:
    helper = Helper(net.bn)
    return lambda x: helper(x)


def _module_in_a_closure(net: Net) -> Callable[..., Any]:
    block = nn.Sequential(net.bn)
    return lambda x: block(x)


def _unregistered(net: Net) -> Callable[..., Any]:
    net.blocks = [net.bn]  # type: ignore[assignment]
    return lambda x: net.blocks[0](x)


def _weak_reference(net: Net) -> Callable[..., Any]:
    reference = weakref.ref(net)
    return lambda x: reference().bn(x)  # type: ignore[union-attr]


def _weak_attribute(net: Net) -> Callable[..., Any]:
    holder = nn.Identity()
    holder.parent = weakref.ref(net)  # type: ignore[assignment]
    holder.forward = types.MethodType(lambda self, x: self.parent().bn(x), holder)  # type: ignore[method-assign]
    return holder


def _parents_method(net: Net) -> None:
    net.a.parents_norm = net.norm_in_hook
    net.a.register_forward_hook(lambda module, _, output: module.parents_norm(module, _, output))


def _hook(name: str, *args: Any, **kwargs: Any) -> Callable[[Net], None]:
    """A hook that is a closure over the model; those around state dicts call the norm as well."""

    def install(net: Net) -> None:
        def hook(*found: Any) -> None:
            net.bn(torch.ones(2, 6) * torch.tensor([[1.0], [2.0]]))

        getattr(net.b if "backward" in name or "forward" in name else net, name)(hook, *args, **kwargs)

    return install


def _two_share(net: Net) -> None:
    net.a.shared = net.act = _function(net)


KINDS: dict[str, Callable[[Net], None]] = {
    "closure": _set(act=_function),
    "lambda with a default": _set(act=_default),
    "partial of a method": _set(act=lambda net: functools.partial(net.norm, 1)),
    "partial of a closure": _set(act=lambda net: functools.partial(_function(net))),
    "bound method": _set(act=lambda net: net.norm),
    "bound closure": _set(act=lambda net: types.MethodType(lambda self, x: net.bn(x), net.a)),
    "module's own forward": _set(act=lambda net: net.bn.forward),
    "closure in a tuple": _set(f=lambda net: (_function(net),), act=lambda net: lambda x: net.f[0](x)),
    "closure in a dict": _in_a_dict,
    "closure in a set": _set(f=lambda net: {_function(net)}, act=lambda net: lambda x: next(iter(net.f))(x)),
    "closure in an object": _set(act=lambda net: Helper(_function(net))),  # type: ignore[arg-type]
    "closure in slots": _set(act=lambda net: Slots(_function(net))),
    "closure in a module with a say in its copies": _set(act=lambda net: OwnState(_function(net))),
    "cached function": _set(act=lambda net: functools.lru_cache(maxsize=1)(_function(net))),
    "wrapped function": _set(act=lambda net: torch.no_grad()(_function(net))),
    "helper": _set(act=lambda net: Helper(net.bn)),
    "helper in a closure": _set(act=_helper_in_a_closure),
    "module made of the model's, in a closure": _set(act=_module_in_a_closure),
    "list of modules": _set(act=_unregistered),
    "weak reference in a closure": _set(act=_weak_reference),
    "weak reference in an attribute": _set(act=_weak_attribute),
    "shared by two modules": _two_share,
    "parent's method in a child": _parents_method,
    "parent's method as a hook": lambda net: net.a.register_forward_hook(net.norm_in_hook),
    "helper's method as a hook": lambda net: net.a.register_forward_hook(Helper(net.bn).hook),
    "forward hook": _hook("register_forward_hook"),
    "forward hook with keywords": _hook("register_forward_hook", with_kwargs=True, always_call=True),
    "pre-forward hook": _hook("register_forward_pre_hook"),
    "pre-forward hook with keywords": _hook("register_forward_pre_hook", with_kwargs=True),
    "backward hook": _hook("register_full_backward_hook"),
    "pre-backward hook": _hook("register_full_backward_pre_hook"),
    "state_dict hook": _hook("register_state_dict_post_hook"),
    "state_dict pre-hook": _hook("register_state_dict_pre_hook"),
    "load_state_dict hook": _hook("register_load_state_dict_post_hook"),
    "load_state_dict pre-hook": _hook("register_load_state_dict_pre_hook"),
    "wrapped load_state_dict hook": _hook("_register_load_state_dict_pre_hook", with_module=True),
}


def installed(kind: str) -> Net:
    torch.manual_seed(0)
    net = Net()
    KINDS[kind](net)
    return net.train()


def attributes_of(net: nn.Module) -> dict[str, Any]:
    """Every module's attributes, and what is in its containers, as they are."""
    return {
        path: {k: (v, dict(v)) if isinstance(v, dict) else (v, list(v)) if isinstance(v, list) else v for k, v in found}
        for path, found in ((path, vars(module).items()) for path, module in net.named_modules())
    }


def ids_in(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: ids_in(entry) for key, entry in value.items()}
    return tuple(map(ids_in, value)) if isinstance(value, tuple | list) else id(value)


def run(net: nn.Module) -> None:
    """All that can call a hook."""
    net(torch.randn(5, 4)).sum().backward()
    net.load_state_dict(net.state_dict())


def number_of_forwards(net: nn.Module) -> int:
    return int(net.bn.num_batches_tracked)  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize("kind", KINDS)
def test_running_a_copy_leaves_the_original_alone(kind: str) -> None:
    net = installed(kind)
    before, attributes = copy.deepcopy(dict(net.named_buffers())), attributes_of(net)
    copied = copy_with(net)
    again = copy_with(copied)
    for one in (copied, again):
        forwards = number_of_forwards(one)
        run(one)
        assert number_of_forwards(one) > forwards, "the copy's function did not reach the copy's module"
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert all(parameter.grad is None for parameter in net.parameters())
    assert ids_in(attributes_of(net)) == ids_in(attributes)
    forwards = number_of_forwards(net)
    run(net)
    assert number_of_forwards(net) > forwards


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_computes_the_same(kind: str) -> None:
    net = installed(kind)
    x = torch.randn(5, 4)
    assert torch.equal(copy_with(net)(x), net(x))


def test_a_function_that_two_modules_share_stays_shared() -> None:
    copied = copy_with(installed("shared by two modules"))
    assert copied.act is copied.a.shared  # type: ignore[union-attr]


def test_a_function_that_does_not_refer_to_the_model_stays_the_same() -> None:
    net, found = Net(), []
    net.a.register_forward_hook(lambda *_: found.append(1))
    net.act = torch.relu
    copied = copy_with(net)
    assert copied.a._forward_hooks == net.a._forward_hooks  # type: ignore[union-attr]
    copied(torch.randn(2, 4))
    assert found == [1]


def test_a_list_that_a_closure_shares_with_an_attribute_is_the_copys_own() -> None:
    net = Net()
    net.found = found = []  # type: ignore[assignment]
    net.act = lambda x: (found.append(x.detach()), x)[1]
    net.keep = found.append
    copied = copy_with(net)
    copied(torch.randn(2, 4))
    copied.keep(1)  # type: ignore[operator]
    assert len(copied.found) == 2  # type: ignore[arg-type]
    assert not found


def test_a_module_that_only_a_closure_holds_is_copied() -> None:
    net, hidden = Net(), nn.BatchNorm1d(6)
    inner = nn.Sequential(hidden)
    net.act = lambda x: inner(x)
    copied = copy_with(
        net, lambda tensor: in_place_of(tensor, (tensor.double() if tensor.dim() else tensor + 0).detach())
    )
    assert copied(torch.randn(5, 4, dtype=torch.float64)).dtype is torch.float64
    assert int(hidden.num_batches_tracked) == 0  # type: ignore[arg-type]


def test_a_module_around_the_model_is_not_copied() -> None:
    net = Net()
    outer = nn.Sequential(net)
    outer.lock = threading.Lock()  # type: ignore[assignment]
    net.a.register_forward_pre_hook(lambda _, inputs: inputs if outer.training else None)
    assert copy_with(copy_with(net))(torch.randn(5, 4)).shape == (5, 3)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("with_kwargs", [False, True])
@pytest.mark.parametrize(
    "kept", ["alone", "by another module", "in a list", "in a dict", "in an object", "in a closure"]
)
def test_a_handle_removes_the_copys_hook(register: str, with_kwargs: bool, kept: str) -> None:
    net, calls = Net(), []
    handle = getattr(net.b, register)(lambda module, *_: calls.append(module), with_kwargs=with_kwargs)
    if kept == "alone":
        net.handle, remove = handle, lambda n: n.handle.remove()
    elif kept == "by another module":
        net.a.handle, remove = handle, lambda n: n.a.handle.remove()
    elif kept == "in a list":
        net.handles, remove = [handle], lambda n: n.handles[0].remove()
    elif kept == "in a dict":
        net.handles, remove = {"b": (handle,)}, lambda n: n.handles["b"][0].remove()
    elif kept == "in an object":
        net.helper, remove = Helper(handle), lambda n: n.helper.module.remove()
    else:
        net.cleanup, remove = lambda: handle.remove(), lambda n: n.cleanup()
    copied = copy_with(copy_with(net))  # a handle of dicts that are gone cannot be copied again
    x = torch.randn(2, 4)
    copied(x)
    assert [module is copied.b for module in calls] == [True]
    remove(copied)
    copied(x)
    assert len(calls) == 1
    net(x)
    assert len(calls) == 2, "the original's hook is gone"
    remove(net)
    net(x)
    assert len(calls) == 2


def test_handles_of_hooks_elsewhere_remove_nothing() -> None:
    net, other, locked = Net(), nn.Linear(2, 2), nn.Linear(2, 2)
    locked.lock = threading.Lock()  # type: ignore[assignment]
    gone = nn.Linear(2, 2)
    handles = [
        other.register_forward_hook(print),
        locked.register_forward_hook(locked.forward),
        gone.register_forward_hook(print, with_kwargs=True),
        net.a.weight.register_hook(print),
        register_module_forward_hook(lambda *_: None),
    ]
    del gone
    net.handles = handles  # type: ignore[assignment]
    copied = copy_with(copy_with(net))
    for handle in copied.handles:  # type: ignore[union-attr]
        handle.remove()
    assert other._forward_hooks
    assert net.a.weight._backward_hooks
    assert torch.nn.modules.module._global_forward_hooks
    handles[-1].remove()


def test_a_module_with_its_own_deepcopy_is_copied_by_it() -> None:
    class Own(nn.Identity):
        def __deepcopy__(self, memo: dict[int, Any]) -> Own:
            made = Own()
            made.by_own = True
            return made

    net = Net()
    net.act = Own()
    assert copy_with(net).act.by_own  # type: ignore[union-attr]


def test_tensors_stay_shared_and_become_what_they_are_changed_to() -> None:
    net = Net()
    net.b.bias = nn.Parameter(torch.zeros(3))
    net.tied = nn.Linear(4, 6)
    net.tied.weight = net.a.weight
    net.act = _function(net)
    found = copy_with(net, on_meta)
    assert all(t.is_meta for t in (*found.parameters(), *found.buffers()))
    assert found.tied.weight is found.a.weight  # type: ignore[union-attr]
    assert copy_with(found)(torch.randn(2, 4, device="meta")).is_meta
    same = copy_with(net, lambda tensor: tensor)
    assert same.a.weight is net.a.weight  # type: ignore[union-attr]


def test_tensors_of_an_earlier_forward_are_copied_without_their_graph() -> None:
    net = Net()
    net.kept = net.a(torch.randn(2, 4))  # type: ignore[assignment]
    net.more = [{"kept": net.kept}]  # type: ignore[assignment]
    copied = copy_with(net)
    assert torch.equal(copied.kept, net.kept)  # type: ignore[arg-type]
    assert not copied.kept.requires_grad  # type: ignore[union-attr]
    assert copied.more[0]["kept"] is copied.kept  # type: ignore[index]


def test_what_is_compiled_in_place_is_not_inherited() -> None:
    net = Net()
    net.compile(backend="eager")
    net.act = _function(net)
    assert vars(copy_with(net)).get("_compiled_call_impl") is None


@pytest.mark.parametrize("where", ["attribute", "hidden module"])
def test_what_cannot_be_copied_is_refused_with_the_way_out(where: str) -> None:
    net, owner = Net(), nn.Identity()
    if where == "attribute":
        net.lock = threading.Lock()  # type: ignore[assignment]
    else:
        owner.lock = threading.Lock()  # type: ignore[assignment]
        net.act = lambda x: owner(x)
    with pytest.raises(TraceError, match=r"cannot be copied: .*lock.*\. Remove"):
        copy_with(net)
