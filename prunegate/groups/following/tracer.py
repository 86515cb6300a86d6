"""Tracing a run of the model: records the effect of every operation on labels."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunegate.groups.following.tape import Operation, Tape
from prunegate.groups.following.values import Values
from prunegate.groups.following.watch import Watch
from prunegate.groups.rules import BUILTIN_RULES, OPERATION_RULES, FunctionRule
from prunegate.groups.rules.call import Call, Rule
from prunegate.groups.rules.factory import label_all
from prunegate.groups.rules.pointwise import pointwise
from prunegate.groups.solving.advice import NO_RULE
from prunegate.groups.solving.labels import Labels
from prunegate.groups.torch_workarounds import quick


@dataclass(frozen=True)
class _Signature:
    """Information from an operation's schema, read once per operation."""

    name: str
    arguments: tuple[str, ...]
    defaults: dict[str, Any]
    rule: Rule
    moves: bool
    own: Rule | None


@dataclass
class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that follows channels through the operations of one run, and records them.

    Attributes:
        values: Information about each tensor; None if only the tape is needed.
        watch: Tracks the running module and function.
        tape: The tape for recording operations, if any.
    """

    values: Values | None
    watch: Watch
    tape: Tape | None

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watch.on_module_end = self._end_module
        self.watch.on_function_end = self._end_function

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = _tensors((*args, *kwargs.values()) if kwargs else args)
        shapes = {id(t): tuple(t.shape) for t in inputs}
        known = None if self.watch.is_opaque else self.values
        referred: tuple[Any, Any] | None = None
        if self.tape is not None:
            if known is not None:
                for tensor in inputs:
                    self.tape.label(tensor, known.labels)
            referred = self.tape.refer(args), self.tape.refer(kwargs) if kwargs else {}
        result = quick.run(func, args, kwargs)
        outputs = [result] if isinstance(result, torch.Tensor) else _tensors((result,))
        if outputs and known is not None:
            self._note(known, func, args, kwargs, inputs, outputs, shapes)
        if outputs and self.tape is not None and referred is not None:
            results = tuple([self.tape.add(t, known.labels(t) if known is not None else ()) for t in outputs])
            self.tape.operations.append(
                Operation(func, referred[0], referred[1], results, isinstance(result, list | tuple))
            )
        return result

    def _end_module(self, module: nn.Module, rule: Rule | None, args: Any, kwargs: Any, output: Any) -> None:
        """Apply a module's own rule to a call, instead of the operations inside."""
        if rule is None:
            return
        if self.values is None:
            self._add(_tensors((output,)), None)
            return
        own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        self.values.use(module.parameters())
        self._ask(self.values, rule, type(module).__name__, {**own, **bound.arguments}, output)

    def _end_function(self, known: FunctionRule, name: str, args: Any, kwargs: Any, output: Any) -> None:
        """The same for a function."""
        if self.values is None:
            self._add(_tensors((output,)), None)
            return
        self._ask(self.values, known.rule, name, {**dict(zip(known.names, args, strict=False)), **kwargs}, output)

    def _ask(self, values: Values, rule: Rule, name: str, arguments: dict[str, Any], output: Any) -> None:
        inputs, outputs = _tensors(arguments.values()), _tensors((output,))
        values.use(inputs)
        shapes = {id(t): tuple(t.shape) for t in inputs}
        self._add(outputs, rule(Call(name, None, arguments, inputs, outputs, shapes, values, self.watch)))

    def _add(self, outputs: Sequence[torch.Tensor], labelled: Sequence[Labels] | None) -> None:
        """Record the results of a module or function that is treated as a whole."""
        for tensor, labels in zip(outputs, labelled or [()] * len(outputs), strict=True):
            if self.values is not None:
                self.values.set(tensor, labels)
            if self.tape is not None:
                self.tape.add(tensor, labels)

    def _note(
        self,
        values: Values,
        func: torch._ops.OpOverload,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
        shapes: dict[int, tuple[int, ...]],
    ) -> None:
        if not inputs and not outputs[0].numel():  # scratch space of a kernel, without channels
            values.set(outputs[0], ())
            return
        signature = _signature(func)
        arguments = signature.defaults.copy()
        arguments.update(zip(signature.arguments, args, strict=False))
        arguments.update(kwargs)
        call = Call(signature.name, func, arguments, inputs, outputs, shapes, values, self.watch)
        values.use(inputs)
        labels = signature.rule(call)
        origin = values.origin(inputs[0]) if signature.moves and inputs else None
        for tensor, own in zip(outputs, labels, strict=True):
            values.set(tensor, own, origin)


def _tensors(arguments: Iterable[Any]) -> list[torch.Tensor]:
    """The tensors among an operation's arguments or results, whose only containers are lists."""
    results: list[torch.Tensor] = []
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            results.append(argument)
        elif isinstance(argument, (list, tuple)):
            results += _tensors(argument)
    return results


def _unknown(call: Call) -> list[Labels]:
    if not call.inputs:
        return label_all(call)
    name = "" if call.func is None else f": {call.func._schema.name}"
    return _pin_all(call, f"{NO_RULE}{name}")


def _pin_all(call: Call, why: str) -> list[Labels]:
    for tensor in call.inputs:
        call.pin(call.labels_of(tensor), why)
    return call.all_outputs(())


# Operations whose result is the rearranged data of their only tensor input.
_REARRANGING = frozenset(
    """view _unsafe_view reshape _reshape_alias permute transpose t unsqueeze squeeze slice select expand
    detach alias contiguous _to_copy split split_with_sizes unbind as_strided clone lift_fresh""".split()
)
_KNOWN_NAMESPACES = frozenset({"aten", "prims", "torchvision", "transformers"})
_signatures: dict[torch._ops.OpOverload, _Signature] = {}


def _signature(func: torch._ops.OpOverload) -> _Signature:
    result = _signatures.get(func)
    own = OPERATION_RULES.get(func._schema.name) if OPERATION_RULES else None
    if result is None or result.own is not own:
        schema = func._schema
        namespace, full = schema.name.split("::")
        in_place = full.endswith("_") and not full.endswith("__")
        name = full[:-1] if in_place else full
        rule = own or (BUILTIN_RULES.get(name) if namespace in _KNOWN_NAMESPACES else None)
        if rule is None:
            rule = pointwise if torch.Tag.pointwise in func.tags else _unknown
        result = _signatures[func] = _Signature(
            name,
            tuple(a.name for a in schema.arguments),
            {a.name: a.default_value for a in schema.arguments if a.has_default_value()},
            rule,
            name in _REARRANGING,
            own,
        )
    return result
