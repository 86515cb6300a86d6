"""Running a model with some of its tensors replaced for one call.

The modules that lead to such a tensor are replaced by *twins*, which are created for the call. A twin shares its
module's state, except for the replaced tensors and the twins of its children. Anything that the model's code keeps for
later, such as a function that checkpointing will rerun in the backward pass, refers to the twins and thus to the
tensors of its own call. Other calls, in other threads or before the same backward pass, have their own twins. The model
itself is not modified.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from prunegate.groups.torch_workarounds.rebinding import Rebinding, refers_to

_SLOT = "_prunegate_bound"
# How torch's layers use a given weight.
_USES: dict[Any, Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    nn.Linear.forward: lambda layer, x, weight: F.linear(x, weight, layer.bias),
    **{
        cls.forward: lambda layer, x, weight: layer._conv_forward(x, weight, layer.bias)
        for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    },
}


class Narrow:
    """A tensor in autocast's precision, which is also available in its own.

    Attributes:
        tensor: The tensor in autocast's precision.
    """

    def __init__(self, tensor: torch.Tensor, whole: Callable[[], torch.Tensor]) -> None:
        self.tensor, self._make = tensor, whole
        self._whole: torch.Tensor | None = None

    @property
    def whole(self) -> torch.Tensor:
        if self._whole is None:
            self._whole = self._make()
        return self._whole

    @property
    def fits(self) -> bool:
        """Whether autocast would currently compute in the precision of `tensor`."""
        kind = self.tensor.device.type
        return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is self.tensor.dtype


def casts_its_weight(module: nn.Module) -> bool:
    """Whether the module's forward uses its weight only in operations that autocast casts."""
    return type(module).forward in _USES


@dataclass
class _Node:
    """A module that gets a twin, and the attributes that are replaced.

    Attributes:
        tensors: Names of parameters and buffers, with the indices of the tensors that replace them.
        children: Names of the child modules that get twins.
        attributes: Names of other attributes that contain modules with twins.
    """

    tensors: dict[str, int] = field(default_factory=dict)
    children: dict[str, _Node] = field(default_factory=dict)
    attributes: tuple[str, ...] = ()


class Binding:
    """Which parameters and buffers of a model are replaced in each call.

    Args:
        model: Only its structure is read; no reference is kept.
        names: For each tensor passed to `run`, the names of the parameters and buffers that it replaces.
    """

    def __init__(self, model: nn.Module, names: Sequence[Sequence[str]]) -> None:
        self._names = tuple(tuple(some) for some in names)
        wanted: dict[int, dict[str, int]] = {}
        for number, some in enumerate(self._names):
            for name in some:
                path, _, attribute = name.rpartition(".")
                wanted.setdefault(id(model.get_submodule(path)), {})[attribute] = number
        self._root = _plan(model, wanted)

    def run(self, model: nn.Module, tensors: Sequence[torch.Tensor | Narrow], args: Any, kwargs: Any) -> Any:
        """Run ``model(*args, **kwargs)`` with the given tensors instead of its own."""
        if torch.compiler.is_compiling():  # the compiler traces a call once, and cannot create modules meanwhile
            named = {name: _whole(tensor) for some, tensor in zip(self._names, tensors, strict=True) for name in some}
            return torch.func.functional_call(model, named, args, kwargs)
        return self.twin(model, tensors)(*args, **kwargs)

    def twin(self, model: nn.Module, tensors: Sequence[torch.Tensor | Narrow]) -> nn.Module:
        """The model's twin with the tensors, for one call; it shares the rest of the model's state."""
        twins: dict[int, Any] = {}
        holders: list[tuple[nn.Module, _Node]] = []

        def twin_of(module: nn.Module, node: _Node) -> nn.Module:
            known: nn.Module | None = twins.get(id(module))
            if known is not None:
                return known
            cls: Any = type(module)
            twin: nn.Module = object.__new__(_twin_class(cls, node.attributes))
            bound: dict[str, Any] = {name: tensors[number] for name, number in node.tensors.items()}
            object.__setattr__(twin, _SLOT, bound)
            object.__setattr__(twin, "__dict__", vars(module))
            twins[id(module)] = twin
            children = module._modules
            for name, child in node.children.items():
                result = children[name]
                assert result is not None
                bound[name] = twin_of(result, child)
            if node.attributes:
                holders.append((module, node))
            return twin

        twin = twin_of(model, self._root)
        if holders:
            for some, value in zip(self._names, tensors, strict=True):
                tensor = _whole(value)
                for name in some:
                    path, _, attribute = name.rpartition(".")
                    twins[id(vars(model.get_submodule(path))["_parameters"].get(attribute))] = tensor
            twins.pop(id(None), None)
        rebound = Rebinding(twins)  # objects shared by several attributes are shared by their twins too
        for module, node in holders:
            bound = getattr(twins[id(module)], _SLOT)
            for name in node.attributes:
                bound[name] = rebound(vars(module)[name])
        return twin


def _plan(model: nn.Module, wanted: Mapping[int, dict[str, int]]) -> _Node:
    """The modules that get twins: those with tensors to replace, and those that contain such a module."""
    modules = list(model.modules())
    needed = {id(model), *wanted}
    needed |= {id(m._parameters.get(name)) for m in modules for name in wanted.get(id(m), ())} - {id(None)}
    values = [(m, name, value) for m in modules for name, value in vars(m).items() if _may_hold(name, value)]
    holders: dict[int, set[str]] = {}
    size = 0
    while len(needed) > size:
        size = len(needed)
        for module, name, value in values:
            if refers_to(value, needed):
                holders.setdefault(id(module), set()).add(name)
                needed.add(id(module))
        for module in reversed(modules):
            if any(id(child) in needed for child in module._modules.values()):
                needed.add(id(module))
    nodes = {
        id(m): _Node(dict(wanted.get(id(m), {})), {}, tuple(sorted(holders.get(id(m), ()))))
        for m in modules
        if id(m) in needed
    }
    for module in modules:
        if id(module) in nodes:
            children = module._modules.items()
            nodes[id(module)].children = {name: nodes[id(child)] for name, child in children if id(child) in nodes}
    return nodes[id(model)]


_NOT_LOOKED_INTO = frozenset({"_parameters", "_buffers", "_modules", "_compiled_call_impl"})
_ATOMS = (bool, int, float, complex, str, bytes, type(None), type, torch.Tensor, torch.dtype, torch.device)


def _may_hold(name: str, value: Any) -> bool:
    if name in _NOT_LOOKED_INTO or isinstance(value, _ATOMS):
        return False
    return bool(value) if type(value) in (tuple, dict, list) else True


def _whole(value: Any) -> Any:
    return value.whole if type(value) is Narrow else value


@lru_cache(maxsize=4096)
def _twin_class(cls: Any, attributes: tuple[str, ...]) -> type[nn.Module]:
    """A class whose instances look up replaced attributes before those of their modules."""

    def find(self: Any, name: str) -> Any:
        bound = _slot(self)
        return _whole(bound[name]) if name in bound else cls.__getattr__(self, name)

    def held(kind: str) -> property:
        def merged(self: Any) -> dict[str, Any]:
            bound, own = _slot(self), self.__dict__[kind]
            if bound.keys().isdisjoint(own):
                return own  # type: ignore[no-any-return]
            return {name: _whole(bound.get(name, value)) for name, value in own.items()}

        return property(merged)

    def kept(name: str) -> property:
        def read(self: Any) -> Any:
            bound = _slot(self)
            return bound[name] if name in bound else self.__dict__[name]

        def write(self: Any, value: Any) -> None:
            _slot(self).pop(name, None)
            self.__dict__[name] = value

        return property(read, write)

    def copied(self: Any) -> Any:
        twin: Any = object.__new__(made)
        object.__setattr__(twin, _SLOT, dict(_slot(self)))
        object.__setattr__(twin, "__dict__", dict(self.__dict__))
        return twin

    def copied_deeply(self: Any, memo: dict[int, Any]) -> Any:
        """An independent module with the tensors of this call."""
        own = memo[id(self)] = object.__new__(cls)
        kept = {"_parameters", "_modules"}
        state = {name: copy.deepcopy(value, memo) for name, value in self.__dict__.items() if name not in kept}
        tensors = {n: t if t is None else nn.Parameter(t.detach().clone()) for n, t in self._parameters.items()}
        own.__dict__.update(state, _parameters=tensors, _modules=copy.deepcopy(self._modules, memo))
        return own

    def bound(self: Any, target: str) -> torch.Tensor:
        path, _, name = target.rpartition(".")
        tensor = getattr(self.get_submodule(path), name, None)
        return tensor if isinstance(tensor, torch.Tensor) else cls.get_parameter(self, target)

    body: dict[str, Any] = {
        "__slots__": (_SLOT,),
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__getattr__": find,
        "_parameters": held("_parameters"),
        "_modules": held("_modules"),
        "_compiled_call_impl": None,  # compiled with the module's own tensors
        "__class__": property(lambda self: cls),  # so that, for example, slices of module lists have the original class
        "__copy__": copied,
        "__deepcopy__": copied_deeply,
        "get_parameter": bound,
        **{name: kept(name) for name in attributes},
    }
    use = _USES.get(cls.forward)
    if use is not None:

        def forward(self: Any, input: torch.Tensor) -> torch.Tensor:
            weight = _slot(self).get("weight")
            if type(weight) is Narrow and weight.fits:
                return use(self, input, weight.tensor)
            return cls.forward(self, input)  # type: ignore[no-any-return]

        body["forward"] = forward
    made = type(cls.__name__, (cls,), body)
    _slot: Callable[[Any], dict[str, Any]] = vars(made)[_SLOT].__get__
    return made
