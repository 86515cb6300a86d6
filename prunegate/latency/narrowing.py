"""The arguments of an operation of the tape after some units are gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from prunegate.groups import Operation, Tape, values_in
from prunegate.groups.solving.kept_positions import KeptByDim, kept_positions
from prunegate.groups.solving.labels import Shape
from prunegate.groups.solving.partition import Ids


@dataclass
class Narrowed:
    """The sizes of a tape's tensors under a mask."""

    tape: Tape
    units_of: Ids
    keep: npt.NDArray[np.bool_]
    _known: dict[int, KeptByDim] = field(default_factory=dict)

    def kept(self, number: int) -> KeptByDim:
        """For each dimension of a tensor, the positions that remain, or None if all do."""
        if number not in self._known:
            shape, labels = self.tape.shapes[number], self.tape.labels[number]
            self._known[number] = kept_positions(shape, labels, self.units_of, self.keep)
        return self._known[number]

    def shape(self, number: int) -> Shape:
        """A tensor's shape."""
        pairs = zip(self.tape.shapes[number], self.kept(number), strict=True)
        return tuple(size if mask is None else int(mask.sum()) for size, mask in pairs)

    def arguments(self, op: Operation) -> tuple[list[Any], dict[str, Any]]:
        """The operation's arguments, with sizes in place of the dense ones."""
        args, kwargs = list(op.args), dict(op.kwargs)
        schema = op.func._schema
        rule = _RULES.get(schema.name)
        for place, argument in enumerate(schema.arguments):
            is_shape = argument.name in ("size", "shape") and "int" in str(argument.type).lower()
            if is_shape and len(op.results) == 1 and (place < len(args) or argument.name in kwargs):
                _set(args, kwargs, place, argument.name, list(self.shape(op.results[0])))
        if rule is not None:
            names = {argument.name: place for place, argument in enumerate(schema.arguments)}
            for name, value in rule(self, op).items():
                _set(args, kwargs, names[name], name, value)
        return args, kwargs


_Rule: TypeAlias = Callable[[Narrowed, Operation], Mapping[str, Any]]


def _set(args: list[Any], kwargs: dict[str, Any], place: int, name: str, value: Any) -> None:
    if place < len(args):
        args[place] = value
    else:
        kwargs[name] = value


def _first(op: Operation) -> int:
    return values_in(op.args)[0].number


def _convolution(sizes: Narrowed, op: Operation) -> Mapping[str, Any]:
    groups, channels = int(op.args[8]), sizes.kept(_first(op))[1]
    if groups > 1 and channels is not None:
        groups = int(channels.reshape(groups, -1).any(axis=1).sum())
    return {"groups": groups}


def _layer_norm(sizes: Narrowed, op: Operation) -> Mapping[str, Any]:
    return {"normalized_shape": list(sizes.shape(_first(op))[-len(op.args[1]) :])}


def _group_norm(sizes: Narrowed, op: Operation) -> Mapping[str, Any]:
    channels, groups = sizes.kept(_first(op))[1], int(op.args[6])
    if channels is not None:
        groups = int(channels.reshape(groups, -1).any(axis=1).sum())
    return {"C": sizes.shape(_first(op))[1], "group": groups}


def _split(name: str) -> _Rule:
    def rule(sizes: Narrowed, op: Operation) -> Mapping[str, Any]:
        dim = int(op.args[2] if len(op.args) > 2 else op.kwargs.get("dim", 0))
        parts = [sizes.shape(number)[dim] for number in op.results]
        return {name: parts if name == "split_sizes" else max(parts)}

    return rule


def _dimension(op: Operation) -> int:
    return int(op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0))


def _slice(sizes: Narrowed, op: Operation) -> Mapping[str, Any]:
    """As many positions as remain; which ones makes no difference to the time."""
    dim = _dimension(op)
    if sizes.kept(_first(op))[dim] is None:
        return {}
    return {"start": 0, "end": sizes.shape(op.results[0])[dim], "step": 1}


def _select(sizes: Narrowed, op: Operation) -> Mapping[str, Any]:
    return {} if sizes.kept(_first(op))[_dimension(op)] is None else {"index": 0}


def _repeat(sizes: Narrowed, op: Operation) -> Mapping[str, Any]:
    after, before = sizes.shape(op.results[0]), sizes.shape(_first(op))
    before = (1,) * (len(after) - len(before)) + before
    return {"repeats": [new // max(old, 1) for new, old in zip(after, before, strict=True)]}


def _pad(sizes: Narrowed, op: Operation) -> Mapping[str, Any]:
    """Padding of what is missing, on one side."""
    pad = list(op.args[1])
    after, before = sizes.shape(op.results[0]), sizes.shape(_first(op))
    for dim in range(len(pad) // 2):
        place = len(before) - 1 - dim
        if sizes.kept(op.results[0])[place] is not None or sizes.kept(_first(op))[place] is not None:
            pad[2 * dim : 2 * dim + 2] = [0, after[place] - before[place]]
    return {"pad": pad}


_RULES: dict[str, _Rule] = {
    "aten::convolution": _convolution,
    "aten::native_layer_norm": _layer_norm,
    "aten::_fused_rms_norm": _layer_norm,
    "aten::native_group_norm": _group_norm,
    "aten::split_with_sizes": _split("split_sizes"),
    "aten::split": _split("split_size"),
    "aten::slice": _slice,
    "aten::select": _select,
    "aten::repeat": _repeat,
    "aten::constant_pad_nd": _pad,
}
