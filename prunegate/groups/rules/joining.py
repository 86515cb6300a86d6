"""Concatenation and stacking of channels from several tensors."""

from __future__ import annotations

import numpy as np

from prunegate.groups.rules.call import Call, RuleTable, table
from prunegate.groups.rules.pointwise import unite_operands
from prunegate.groups.solving.labels import Labels, along, on_axis, varying
from prunegate.groups.solving.partition import Ids


def _cat(call: Call) -> list[Labels]:
    ndim = len(call.shape)
    dim = call.dim("dim", ndim)
    # Skip empty tensors of shape (0,), which can be joined with any. Other empty tensors, such as a prefix of no
    # tokens, have to agree in their other dimensions.
    parts = [t for t in call.inputs if len(call.shape_of(t)) == ndim]
    across = [along(call.labels_of(t), dim) for t in parts]
    beside = [tuple(x for x in call.labels_of(t) if x is not mine) for t, mine in zip(parts, across, strict=True)]
    # For a label over the joined and another dimension, the other dimensions have to agree.
    others = {d for label in across if label is not None for d in varying(label) if d != dim}
    clear = [tuple(x for x in own if not others.intersection(varying(x))) for own in beside]
    for own, left in zip(beside, clear, strict=True):
        for label in own:
            if not any(label is x for x in left):
                call.pin(label, "joined with channels that are arranged differently")

    shapes = [tuple(1 if d == dim else s for d, s in enumerate(call.shape_of(t))) for t in parts]
    result = list(unite_operands(call, list(zip(clear, shapes, strict=True)), ndim))
    if any(label is not None for label in across):
        result.append(np.concatenate(_pieces(call, parts, across, dim, others), axis=dim))
    return [call.keep(result)]


def _pieces(call: Call, parts: list, across: list[Ids | None], dim: int, others: set[int]) -> list[Ids]:  # type: ignore[type-arg]
    """One label per part along ``dim``, of equal shape in the other dimensions; unlabelled parts get pinned ids."""
    pieces = []
    for tensor, label in zip(parts, across, strict=True):
        length = call.shape_of(tensor)[dim]
        if label is None:
            ids = call.constraints.pinned_ids(length, call.reason("joined with channels that cannot be removed"))
            label = on_axis(ids, dim, len(call.shape))
        shape = [length if d == dim else call.shape[d] if d in others else 1 for d in range(len(call.shape))]
        pieces.append(np.broadcast_to(label, shape))
    return pieces


def _stack(call: Call) -> list[Labels]:
    """A new unlabelled dimension: the same positions of all parts are the same units."""
    dim = call.dim("dim", len(call.shape))
    operands = []
    for tensor in call.inputs:
        labels = tuple(np.expand_dims(label, dim) for label in call.labels_of(tensor))
        shape = call.shape_of(tensor)
        operands.append((labels, (*shape[:dim], 1, *shape[dim:])))
    return [unite_operands(call, operands, len(call.shape))]


RULES: RuleTable = {**table(_cat, "cat concat concatenate"), **table(_stack, "stack")}
