"""Writing the operations of a run with the sizes after a cut.

Each rule writes one kind of operation and returns the node of its result.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import fx
from torch.nn import functional

from prunegate.compaction.plan import Mask
from prunegate.compaction.writer import CannotReplayError, Writer
from prunegate.groups import Operation, Value

_ITEM = operator.getitem

Bound: TypeAlias = Mapping[str, Any]
RewriteRule: TypeAlias = Callable[[Writer, Operation, Bound, "Operation | None"], fx.Node]


def _bound(operation: Operation) -> dict[str, Any]:
    """The operation's arguments by name, defaults filled in."""
    arguments = operation.func._schema.arguments
    results = {a.name: a.default_value for a in arguments if a.has_default_value()}
    results.update(zip((a.name for a in arguments), operation.args, strict=False))
    return {**results, **operation.kwargs}


def write_operation(writer: Writer, operation: Operation, again: Operation | None) -> None:
    """Write one operation and keep the nodes of its results.

    Raises:
        CannotReplayError: It cannot be written with other sizes.
    """
    name = operation.func._schema.name.split("::")[1]
    rule = _RULES.get(name.removesuffix("_"), _as_it_is)
    bound = _bound(operation)
    node = rule(writer, operation, bound, again)
    results = list(operation.results)
    if operation.is_sequence and rule not in _SINGLE:
        for place, number in enumerate(results):
            writer.nodes[number] = writer.call(_ITEM, node, place)
    elif results:
        writer.nodes[results[0]] = node


def _as_it_is(writer: Writer, operation: Operation, bound: Bound, again: Operation | None) -> fx.Node:
    args = writer.filled(operation.args, None if again is None else again.args)
    kwargs = writer.filled(operation.kwargs, None if again is None else again.kwargs)
    return _typed_call(writer, operation.func, args, kwargs)


def _typed_call(writer: Writer, func: torch._ops.OpOverload, args: Any, kwargs: dict[str, Any]) -> fx.Node:
    """A call on the device of the inputs; one that names a dtype is a call of torch's own function.

    Only these are visible to function modes, which comparisons in double precision rely on.
    """
    kwargs = {key: value for key, value in kwargs.items() if value is not None and key not in _LAYOUT}
    if "device" in kwargs:
        if writer.clock is not None:
            kwargs["device"] = writer.call(getattr, writer.clock[0], "device")
        elif writer.device_argument is not None:
            kwargs["device"] = writer.device_argument
        else:
            del kwargs["device"]
    makes = not any(isinstance(arg, fx.Node) for arg in args)
    if makes and writer.clock is not None and kwargs.get("dtype") is writer.clock_dtype is not None:
        # Created in the dtype of the inputs, so that it also works in other precisions.
        kwargs["dtype"] = writer.call(getattr, writer.clock[0], "dtype")
    name = func._schema.name.split("::")[1]
    if name == "_to_copy":
        return writer.graph.call_method("to", tuple(args), kwargs) if kwargs else writer.call(torch.clone, args[0])
    function = getattr(torch, name, None)
    if "dtype" in kwargs and function is not None:
        return writer.graph.call_function(function, tuple(args), kwargs)
    if "dtype" in kwargs and hasattr(torch.Tensor, name):
        return writer.graph.call_method(name, tuple(args), kwargs)
    return writer.graph.call_function(func, tuple(args), kwargs)


_LAYOUT = frozenset({"layout", "pin_memory", "non_blocking", "memory_format"})


def _input(bound: Bound, *names: str) -> int:
    for name in names or ("self", "input"):
        value = bound.get(name)
        if isinstance(value, Value):
            return value.number
    raise CannotReplayError("an operation without the tensor it works on")


def _reshape(writer: Writer, operation: Operation, bound: Bound, again: Operation | None) -> fx.Node:
    return writer.call(torch.reshape, writer.node(_input(bound)), writer.shape_of(operation.results[0]))


def _expand(writer: Writer, operation: Operation, bound: Bound, again: Operation | None) -> fx.Node:
    shape = writer.shape_of(operation.results[0])
    return writer.graph.call_method("expand", (writer.node(_input(bound)), *shape))


def _split(writer: Writer, operation: Operation, bound: Bound, again: Operation | None) -> fx.Node:
    dim = int(bound["dim"])
    sizes = [writer.shape_of(number)[dim] for number in operation.results]
    return writer.call(torch.split, writer.node(_input(bound)), sizes, dim)


def _slice(writer: Writer, operation: Operation, bound: Bound, again: Operation | None) -> fx.Node:
    number = _input(bound)
    dim = int(bound["dim"]) % len(writer.sizes.tape.shapes[number])
    mask = writer.sizes.kept(number)[dim]
    if mask is None:
        return _as_it_is(writer, operation, bound, again)
    picked = np.arange(len(mask))[slice(bound["start"], bound["end"], bound["step"])]
    places = (np.cumsum(mask) - 1)[picked[mask[picked]]]
    x = writer.node(number)
    if len(places) and np.array_equal(places, np.arange(places[0], places[-1] + 1)):
        func = operation.func
        return writer.graph.call_function(func, (x, dim, int(places[0]), int(places[-1]) + 1, 1))
    return writer.call(torch.index_select, x, dim, writer.positions(places))


def _select(writer: Writer, operation: Operation, bound: Bound, again: Operation | None) -> fx.Node:
    number = _input(bound)
    dim = int(bound["dim"]) % len(writer.sizes.tape.shapes[number])
    mask = writer.sizes.kept(number)[dim]
    if mask is None:
        return _as_it_is(writer, operation, bound, again)
    place = int(mask[: int(bound["index"]) % len(mask)].sum())
    return writer.graph.call_function(operation.func, (writer.node(number), dim, place))


def _convolution(writer: Writer, operation: Operation, bound: Bound, again: Operation | None) -> fx.Node:
    args = list(writer.filled(operation.args))
    names = [a.name for a in operation.func._schema.arguments]
    channels = writer.sizes.kept(_input(bound))[1]
    args[names.index("groups")] = remaining_groups(int(bound["groups"]), channels)
    return writer.graph.call_function(operation.func, tuple(args))


def remaining_groups(groups: int, channels: Mask | None) -> int:
    """How many of a layer's groups have any kept channel."""
    return groups if channels is None else int(channels.reshape(groups, -1).any(axis=1).sum())


def _layer_norm(writer: Writer, operation: Operation, bound: Bound, again: Operation | None) -> fx.Node:
    number = _input(bound)
    shape = list(writer.sizes.shape(number)[-len(bound["normalized_shape"]) :])
    given = [writer.filled(bound.get(name)) for name in ("weight", "bias") if name in bound]
    function = functional.layer_norm if "bias" in bound else functional.rms_norm
    return writer.call(function, writer.node(number), shape, *given, bound["eps"])


def _group_norm(writer: Writer, operation: Operation, bound: Bound, again: Operation | None) -> fx.Node:
    number = _input(bound)
    groups = remaining_groups(int(bound.get("group", bound.get("num_groups", 1))), writer.sizes.kept(number)[1])
    weight, bias = writer.filled(bound.get("weight")), writer.filled(bound.get("bias"))
    return writer.call(functional.group_norm, writer.node(number), groups, weight, bias, bound["eps"])


def _batch_norm(writer: Writer, operation: Operation, bound: Bound, again: Operation | None) -> fx.Node:
    """Batch norm with batch statistics in training mode, like the original layer."""
    names = ("running_mean", "running_var", "weight", "bias")
    x, tensors = writer.node(_input(bound)), [writer.filled(bound.get(name)) for name in names]
    always = bool(bound.get("training", bound.get("train", False))) or tensors[0] is None
    training = True if always else writer.graph.create_node("get_attr", "training")
    return writer.call(functional.batch_norm, x, *tensors, training, bound["momentum"], bound["eps"])


def _fill(writer: Writer, operation: Operation, bound: Bound, again: Operation | None) -> fx.Node:
    """Tensors of one value, created at the new size."""
    args, kwargs = list(operation.args), dict(operation.kwargs)
    names = [a.name for a in operation.func._schema.arguments]
    args[names.index("size")] = writer.shape_of(operation.results[0])
    return _typed_call(writer, operation.func, writer.filled(args), writer.filled(kwargs))


def _table(writer: Writer, operation: Operation, bound: Bound, again: Operation | None) -> fx.Node:
    """Tensors whose entries depend on their position, created at full size and then cut."""
    node = _as_it_is(writer, operation, bound, again)
    for dim, mask in enumerate(writer.sizes.kept(operation.results[0])):
        if mask is not None:
            node = writer.call(torch.index_select, node, dim, writer.positions(np.flatnonzero(mask)))
    return node


def _repeat_interleave(writer: Writer, operation: Operation, bound: Bound, again: Operation | None) -> fx.Node:
    if not isinstance(bound.get("repeats"), int):
        return _as_it_is(writer, operation, bound, again)
    return writer.call(torch.repeat_interleave, writer.node(_input(bound)), bound["repeats"], bound["dim"])


def _strided(writer: Writer, operation: Operation, bound: Bound, again: Operation | None) -> fx.Node:
    number, result = _input(bound), operation.results[0]
    tape, sizes = writer.sizes.tape, writer.sizes
    if tape.shapes[number] == tape.shapes[result]:
        return writer.node(number)
    if sizes.is_cut(number) or sizes.is_cut(result) or any(sizes.follows_batch(result)):
        raise CannotReplayError("it addresses memory by strides")
    return _as_it_is(writer, operation, bound, again)


def _never(writer: Writer, operation: Operation, bound: Bound, again: Operation | None) -> fx.Node:
    raise CannotReplayError(f"{operation.func} cannot be replayed")


def write_function(writer: Writer, function: Callable[..., Any], args: Any, kwargs: Any, again: Any) -> fx.Node:
    """Write a function that is replayed whole: fused attention, or a dropout, which training turns on."""
    again_args, again_kwargs = again if again is not None else (None, None)
    name = getattr(function, "__name__", "")
    filled = list(writer.filled(args, again_args))
    named = dict(writer.filled(kwargs, again_kwargs))
    if "dropout" in name:
        flag = "train" if getattr(function, "__module__", None) is None else "training"
        training = writer.graph.create_node("get_attr", "training")
        if len(filled) > 2:
            filled[2] = training
        elif named.get(flag, True) is False:
            named[flag] = training
    return writer.graph.call_function(function, tuple(filled), named)


_SINGLE = {_layer_norm, _group_norm, _batch_norm, _reshape, _expand}
_RULES: dict[str, RewriteRule] = {
    **dict.fromkeys("view _unsafe_view reshape _reshape_alias _reshape_copy view_copy unflatten".split(), _reshape),
    **dict.fromkeys("expand expand_copy".split(), _expand),
    **dict.fromkeys("split split_with_sizes unsafe_split unsafe_split_with_sizes".split(), _split),
    **dict.fromkeys("slice slice_copy".split(), _slice),
    **dict.fromkeys("select select_copy".split(), _select),
    "convolution": _convolution,
    **dict.fromkeys("native_layer_norm _fused_rms_norm".split(), _layer_norm),
    **dict.fromkeys("native_group_norm".split(), _group_norm),
    **dict.fromkeys(
        """native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
        _batch_norm_no_update""".split(),
        _batch_norm,
    ),
    **dict.fromkeys("zeros ones empty full new_zeros new_ones new_empty new_full rand randn".split(), _fill),
    **dict.fromkeys("arange linspace logspace eye randint randperm".split(), _table),
    "repeat_interleave": _repeat_interleave,
    **dict.fromkeys("as_strided as_strided_copy".split(), _strided),
    **dict.fromkeys("resize set unfold_backward".split(), _never),
}
