"""Moving data without changing it: labels are moved in the same way."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

from prunegate.groups.rules.call import Call, RuleTable, table
from prunegate.groups.solving.constraints import SPREAD
from prunegate.groups.solving.labels import Labels, align, along, on_axis, pick, reshaped, varying
from prunegate.groups.solving.partition import Ids


def _each_label(move: Callable[[Call, Ids], Ids]) -> Callable[[Call], list[Labels]]:
    """A rule that moves every label of the first input to the single output."""

    def rule(call: Call) -> list[Labels]:
        return [call.keep([move(call, label) for label in call.labels_of(call.inputs[0])])]

    return rule


def _reshape(call: Call) -> list[Labels]:
    labels, before, after = call.labels_of(call.inputs[0]), call.shape_of(call.inputs[0]), call.shape
    if 0 in before:  # treat the dimension as if it had one entry, so that the other dimensions are moved
        before, after = (tuple([max(size, 1) for size in shape]) for shape in (before, after))
        if math.prod(before) != math.prod(after):
            call.pin(labels, "a tensor without elements gets another shape")
            return [()]
    return [call.keep([reshaped(label, before, after) for label in labels])]


def _permute(call: Call, label: Ids) -> Ids:
    return label.transpose([d % label.ndim for d in call["dims"]])


def _transpose(call: Call, label: Ids) -> Ids:
    return label.swapaxes(call["dim0"], call["dim1"]) if label.ndim else label


def _squeeze(call: Call, label: Ids) -> Ids:
    before = call.shape_of(call.inputs[0])
    dims = call.arguments.get("dim")
    chosen = range(len(before)) if dims is None else [dims] if isinstance(dims, int) else dims
    drop = {d % len(before) for d in chosen if before[d % len(before)] == 1}
    return label.reshape([s for d, s in enumerate(label.shape) if d not in drop])


def _slice(call: Call, label: Ids) -> Ids:
    dim = call.dim("dim", label.ndim)
    if label.shape[dim] == 1:
        return label
    index = [slice(None)] * label.ndim
    index[dim] = slice(call["start"], call["end"], call["step"])
    return label[tuple(index)]


def _select(call: Call, label: Ids) -> Ids:
    dim = call.dim("dim", label.ndim)
    return pick(label, int(call["index"]), dim)


def _split(call: Call) -> list[Labels]:
    """Equal chunks keep the same positions, as code that splits into equal parts needs equal sizes."""
    source = call.inputs[0]
    dim = call.dim("dim", source.dim())
    lengths = [int(part.shape[dim]) for part in call.outputs]
    bounds = np.cumsum([0, *lengths])
    results: list[list[Ids]] = [[] for _ in call.outputs]
    equal = call.name in ("split", "unsafe_split") and len(set(lengths)) == 1
    for label in call.labels_of(source):
        whole = label.shape[dim] == 1
        for i, result in enumerate(results):
            result.append(label if whole else label.take(range(bounds[i], bounds[i + 1]), axis=dim))
            if equal and not whole and i:
                call.constraints.tie(results[0][-1], result[-1])
    return [call.keep(result) for result in results]


def _unbind(call: Call) -> list[Labels]:
    source = call.inputs[0]
    dim = call.dim("dim", source.dim())
    labels = call.labels_of(source)
    return [call.keep([pick(label, i, dim) for label in labels]) for i in range(len(call.outputs))]


def _pass(call: Call) -> list[Labels]:
    return call.all_outputs(call.labels_of(call.inputs[0]))


def _flip(call: Call, label: Ids) -> Ids:
    return np.flip(label, call["dims"])


def _repeat(call: Call) -> list[Labels]:
    repeats = call["repeats"]
    moved = [align(label, len(call.shape)) for label in call.labels_of(call.inputs[0])]
    tiled = [np.tile(label, [n if label.shape[d] > 1 else 1 for d, n in enumerate(repeats)]) for label in moved]
    return [call.keep([*tiled, *_spread(call)])]


def _roll(call: Call) -> list[Labels]:
    source = call.inputs[0]
    rolled = {d % source.dim() for d in call["dims"]} if call["dims"] else set(range(source.dim()))
    return [call.clear_of(call.labels_of(source), rolled, "rolled along the channels")]


def _unfold(call: Call) -> list[Labels]:
    source = call.inputs[0]
    mixed = {call.dim("dimension", source.dim())}
    kept = call.clear_of(call.labels_of(source), mixed, "unfolded along the channels")
    return [tuple(label[..., None] for label in kept)]


def _constant_pad(call: Call) -> list[Labels]:
    """Padding channels are constants, which may take on the channels they are combined with; the others are moved."""
    source, pad = call.inputs[0], list(call["pad"])
    result = []
    for label in call.labels_of(source):
        for i in range(0, len(pad), 2):
            dim = source.dim() - 1 - i // 2
            if label.shape[dim] == 1 or (pad[i] == 0 and pad[i + 1] == 0):
                continue
            if len(varying(label)) > 1:
                label = call.constraints.tie_along(label, dim)
                continue
            if min(pad[i], pad[i + 1]) < 0:
                call.pin(label, "cropped along the channels")
                break
            first, last = (call.constraints.new_axis("constant", "padding", dim, n) for n in pad[i : i + 2])
            label = on_axis(np.concatenate([first, label.reshape(-1), last]), dim, label.ndim)
        else:
            result.append(label)
    return [tuple(result)]


def _channel_shuffle(call: Call) -> list[Labels]:
    """Groups of channels are interleaved; their number is an argument, so all lose the same positions."""
    groups = int(call["groups"])
    result = []
    for label in call.labels_of(call.inputs[0]):
        if label.shape[1] > 1:
            beside = (*label.shape[:1], groups, -1, *label.shape[2:])
            places = call.constraints.tie_along(label.reshape(beside), 1)
            shuffled = np.broadcast_to(places, (*label.shape[:1], groups, places.shape[2], *label.shape[2:]))
            label = shuffled.swapaxes(1, 2).reshape(label.shape)
        result.append(label)
    return [call.keep(result)]


def _edge_pad(call: Call) -> list[Labels]:
    """Reflection and replication padding: padded dimensions cannot have labels."""
    source = call.inputs[0]
    padded = {source.dim() - 1 - i for i in range(len(call["padding"]) // 2)}
    return [call.clear_of(call.labels_of(source), padded, "padded along the channels by their own values")]


def _as_strided(call: Call) -> list[Labels]:
    source = call.inputs[0]
    if call.shape_of(source) == call.shape and tuple(source.stride()) == tuple(call["stride"]):
        return _pass(call)
    if not call.labels_of(source):
        return [()]
    return _same_operation(call)


def _same_operation(call: Call) -> list[Labels]:
    """Run the operation itself on the full-size label (float64 represents ids exactly)."""
    source = call.inputs[0]
    if call.func is None:
        raise TypeError(f"{call.name}: this rule repeats an operation, and serves operations only")
    results: list[list[Ids]] = [[] for _ in call.outputs]
    for label in call.labels_of(source):
        full = np.array(np.broadcast_to(label, call.shape_of(source)), dtype=np.float64)
        with _disable_current_modes(), torch.no_grad():
            arguments: dict[str, Any] = {
                name: torch.from_numpy(full) if value is source else value
                for name, value in call.arguments.items()
                if not isinstance(value, torch.Tensor) or value is source
            }
            moved = _invoke(call.func, arguments)
        parts = moved if isinstance(moved, (tuple, list)) else [moved]
        for result, part in zip(results, parts, strict=True):
            ids = part.numpy().astype(np.int64)
            result.append(ids)
    return [call.keep(result) for result in results]


def _invoke(func: torch._ops.OpOverload, arguments: dict[str, Any]) -> Any:
    positional = [arguments[a.name] for a in func._schema.arguments if not a.kwarg_only and a.name in arguments]
    keyword = {a.name: arguments[a.name] for a in func._schema.arguments if a.kwarg_only and a.name in arguments}
    return func(*positional, **keyword)


def _expand(call: Call) -> list[Labels]:
    return [call.keep([*(align(label, len(call.shape)) for label in call.labels_of(call.inputs[0])), *_spread(call)])]


def _spread(call: Call) -> Labels:
    """Labels along expanded dimensions, which may take on the channels that they are combined with.

    This is like broadcasting: ``x / count.expand_as(x)`` is ``x / count``. If the code uses a fixed number instead, the
    dry run shows it.
    """
    before = call.shape_of(call.inputs[0])
    before = (1,) * (len(call.shape) - len(before)) + before
    return tuple(
        [
            on_axis(call.constraints.new_axis("constant", SPREAD, d, size), d, len(before))
            for d, (had, size) in enumerate(zip(before, call.shape, strict=True))
            if had == 1 < size
        ]
    )


def _as_complex(call: Call) -> list[Labels]:
    """Real and imaginary parts along the last dimension become one number."""
    source = call.inputs[0]
    kept = call.clear_of(call.labels_of(source), (source.dim() - 1,), "real and imaginary parts of one number")
    return [tuple(label[..., 0] for label in kept)]


def _glu(call: Call) -> list[Labels]:
    """Two halves of one dimension are multiplied, so they keep the same positions."""
    source = call.inputs[0]
    dim = call.dim("dim", source.dim())
    label = along(call.labels_of(source), dim)
    others = [other for other in call.labels_of(source) if other is not label]
    if label is not None:
        first, second = np.split(label, 2, axis=dim)
        call.constraints.tie(first, second)
        others.append(first)
    return [call.keep(others)]


RULES: RuleTable = {
    **table(
        _reshape,
        """view _unsafe_view reshape _reshape_alias _reshape_copy view_copy flatten unflatten view_as
        unsqueeze""",
    ),
    **table(_each_label(_permute), "permute permute_copy"),
    **table(_each_label(_transpose), "transpose swapaxes swapdims transpose_copy"),
    **table(_each_label(lambda call, label: label.T), "t t_copy numpy_T"),
    **table(_each_label(_squeeze), "squeeze squeeze_copy"),
    **table(_each_label(_slice), "slice slice_copy"),
    **table(_each_label(_select), "select select_copy"),
    **table(_expand, "expand expand_copy"),
    **table(_each_label(_flip), "flip"),
    **table(_repeat, "repeat"),
    **table(_split, "split unsafe_split split_with_sizes unsafe_split_with_sizes split_copy split_with_sizes_copy"),
    **table(_unbind, "unbind unbind_copy"),
    **table(
        _pass,
        """clone detach alias _to_copy contiguous lift lift_fresh lift_fresh_copy to _conj _conj_physical conj_physical
        resolve_conj resolve_neg _neg_view real imag""",
    ),
    **table(_roll, "roll"),
    **table(_unfold, "unfold unfold_copy"),
    **table(_constant_pad, "constant_pad_nd"),
    **table(_channel_shuffle, "channel_shuffle native_channel_shuffle"),
    **table(_edge_pad, " ".join(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3))),
    **table(_as_strided, "as_strided as_strided_copy"),
    **table(
        _same_operation,
        """pixel_shuffle pixel_unshuffle diagonal
        repeat_interleave rot90 movedim""",
    ),
    **table(_each_label(lambda call, label: label[..., None]), "view_as_real view_as_real_copy"),
    **table(_as_complex, "view_as_complex view_as_complex_copy"),
    **table(_glu, "glu"),
}
