"""Watching the model run: every operation's effect on labels is looked up and noted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunegate.groups.labels import Labels
from prunegate.groups.rules import RULES
from prunegate.groups.rules.call import Call, Rule
from prunegate.groups.rules.factory import label_all
from prunegate.groups.rules.pointwise import pointwise
from prunegate.groups.values import Values


@dataclass(frozen=True)
class _Signature:
    """What a schema says, read once for each operation."""

    name: str
    arguments: tuple[str, ...]
    defaults: dict[str, Any]
    rule: Rule
    moves: bool


@dataclass
class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that follows channels through the operations of one run.

    Attributes:
        module: Path of the module that is running, kept by `module_path_hooks`.
    """

    values: Values
    module: list[str] = field(default_factory=lambda: [""])

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        shapes = {id(t): tuple(t.shape) for t in inputs}
        result = func(*args, **kwargs)
        outputs = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        if outputs:
            self._note(func, args, kwargs, inputs, outputs, shapes)
        return result

    def _note(
        self,
        func: torch._ops.OpOverload,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
        shapes: dict[int, tuple[int, ...]],
    ) -> None:
        signature = _signature(func)
        arguments = {**signature.defaults, **dict(zip(signature.arguments, args, strict=False)), **kwargs}
        call = Call(
            signature.name, func, arguments, inputs, outputs, shapes, self.values, self.module[-1]
        )  # fmt: skip
        for tensor in inputs:
            origin = self.values.origin(tensor)
            if origin is not None:
                self.values.used.add(origin)
        empty = any(t.numel() == 0 for t in inputs)
        labels = _pin_all(call, "a tensor without elements passes through") if empty else signature.rule(call)
        origin = self.values.origin(inputs[0]) if signature.moves and inputs else None
        for tensor, found in zip(outputs, labels, strict=True):
            self.values.set(tensor, found, origin)


def _unknown(call: Call) -> list[Labels]:
    if not call.inputs:
        return label_all(call)
    return _pin_all(call, "no rule says what this operation does to channels")


def _pin_all(call: Call, why: str) -> list[Labels]:
    for tensor in call.inputs:
        call.pin(call.labels_of(tensor), why)
    return call.all_outputs(())


# Operations whose result is the very data of their only tensor input, rearranged.
_REARRANGING = frozenset(
    """view _unsafe_view reshape _reshape_alias permute transpose t unsqueeze squeeze slice select expand
    detach alias contiguous _to_copy split split_with_sizes unbind as_strided clone lift_fresh""".split()
)
_signatures: dict[torch._ops.OpOverload, _Signature] = {}


def _signature(func: torch._ops.OpOverload) -> _Signature:
    found = _signatures.get(func)
    if found is None:
        schema = func._schema
        full = schema.name.split("::")[1]
        in_place = full.endswith("_") and not full.endswith("__")
        name = full[:-1] if in_place else full
        rule = RULES.get(name)
        if rule is None:
            rule = pointwise if torch.Tag.pointwise in func.tags else _unknown
        found = _signatures[func] = _Signature(
            name,
            tuple(a.name for a in schema.arguments),
            {a.name: a.default_value for a in schema.arguments if a.has_default_value()},
            rule,
            name in _REARRANGING,
        )
    return found
