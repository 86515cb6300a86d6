"""Pointwise operations: all operands have the same units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunegate.groups.rules.call import Call, RuleTable, table
from prunegate.groups.solving.labels import Labels, Shape, align, varying
from prunegate.groups.solving.partition import Ids

Operand = tuple[Labels, Shape]


def unite_operands(
    call: Call, operands: Sequence[Operand], ndim: int, places: Ids | None = None, has_tables: bool = True
) -> Labels:
    """The labels of a broadcast over ``operands``, whose common units are tied.

    If a label varies on a dimension on which another operand has several entries and no label, that dimension cannot be
    sliced: the unit is tied along it, or pinned if it lies along no other dimension.

    Args:
        places: The ids that head dimensions are tied with, if these are removed.
        has_tables: Whether constants of the code may have a value per position, like a rotary table. When entries are
            written to a tensor, constants are only the background, such as zeros.
    """
    quick = _along_one_dimension(call, operands, ndim)
    if quick is not None:
        return quick
    shapes = [(1,) * (ndim - len(shape)) + shape for _, shape in operands]
    labels = [[align(label, ndim) for label in own] for own, _ in operands]
    if has_tables:
        _set_tables_aside(call, labels)
    covered = [{d for label in own for d in varying(label)} for own in labels]
    spanned = [{d for d, size in enumerate(shape) if size > 1} for shape in shapes]

    left: list[tuple[set[int], Ids]] = []
    for own in labels:
        for label in own:
            dims = set(varying(label))
            bare = dims & set().union(*(spanned[j] - covered[j] for j in range(len(operands))))
            if bare == dims:
                call.pin(label, "meets channels that cannot be removed")
                continue
            for dim in bare:  # the width of heads is combined with a table: whole heads are removed
                label = call.constraints.tie_along(label, dim)
            left.append((dims - bare, label))
    wide, parts = _with_parts(left)
    if wide is not None and parts:
        _choose_dimension(call, wide, parts, places)
        left = [one for one in left if not any(one[1] is part for part in parts)]

    clusters: list[tuple[set[int], list[Ids]]] = []
    for dims, label in left:
        merged: tuple[set[int], list[Ids]] = (dims, [label])
        for cluster in [c for c in clusters if c[0] & dims]:
            clusters.remove(cluster)
            merged = (merged[0] | cluster[0], cluster[1] + merged[1])
        clusters.append(merged)

    result: list[Ids] = []
    for _, members in clusters:
        widest = members[0]
        for label in members[1:]:
            call.constraints.tie(widest, label)
            if label.size > widest.size:
                widest = label
        shape = np.broadcast_shapes(*(label.shape for label in members))
        result.append(np.broadcast_to(widest, shape) if shape != widest.shape else widest)
    return tuple(result)


def _with_parts(labels: Sequence[tuple[set[int], Ids]]) -> tuple[Ids | None, list[Ids]]:
    """A label over two dimensions, such as heads and their width, and the other operands' labels over one of them."""
    wide = next((one for one in labels if len(one[0]) == 2), None)
    if wide is None or any(len(dims | wide[0]) > 2 and dims & wide[0] for dims, _ in labels):
        return None, []
    return wide[1], [label for dims, label in labels if dims < wide[0]]


def _choose_dimension(call: Call, wide: Ids, parts: Sequence[Ids], places: Ids | None) -> None:
    """Record that slices along either of two dimensions can be removed; labels along the other one are then kept."""
    outer, inner = varying(wide)

    def keeping(dim: int, other: int) -> Ids:
        kept = call.constraints.tie_along(wide, other)
        for part in parts:
            if varying(part) == (dim,):
                call.constraints.tie(kept, part)
            else:
                call.pin(part, "a table or scale that several sets of channels share")
        return kept

    def whole() -> None:
        keeping(outer, inner)

    def of_each() -> None:
        kept = keeping(inner, outer)
        if places is not None:
            call.constraints.tie(kept.reshape(-1), places)

    call.either("heads", whole, of_each)


def _along_one_dimension(call: Call, operands: Sequence[Operand], ndim: int) -> Labels | None:
    """The common case of `unite_operands`, all labels flat and along the same dimension; otherwise None."""
    common, flat = 0, []
    for labels, shape in operands:
        if len(labels) != 1:
            continue
        label = labels[0]
        size = label.size
        if size == 1 or size not in label.shape:
            return None
        dim = label.shape.index(size) - label.ndim
        if dim != (common or dim) or shape[dim] != size:
            return None
        common = dim
        flat.append(label)
    for labels, shape in operands:
        if len(labels) > 1 or (not labels and common and len(shape) >= -common and shape[common] > 1):
            return None
    if not flat or any(label.size != flat[0].size for label in flat):
        return None
    for label in flat[1:]:
        call.constraints.tie(flat[0].reshape(-1), label.reshape(-1))
    return (align(flat[0], ndim),)


def _set_tables_aside(call: Call, labels: list[list[Ids]]) -> None:
    """Pin and drop labels of vectors and constant tables over a part of what another operand's label varies on.

    A rotary table, or a scale, over the width of heads is combined with all heads: if its entries were treated as
    channels, every head would have to lose the same positions. Without it, whole heads are removed.
    """
    wide = [set(varying(label)) for own in labels for label in own]
    for own in labels:
        for label in list(own):
            dims = set(varying(label))
            wider = [other for other in wide if dims < other]
            # With two dimensions there is a choice; with more, the dimension of a vector's entries is ambiguous.
            if wider and call.constraints.is_table(label, with_vectors=max(map(len, wider)) > 2):
                call.pin(label, "a table or scale that several sets of channels share")
                own[:] = [x for x in own if x is not label]


def pointwise(call: Call) -> list[Labels]:
    operands = [(call.labels_of(t), call.shape_of(t)) for t in call.inputs]
    if not any(labels for labels, _ in operands):
        return call.all_outputs(())
    if len(operands) == 1:
        return call.all_outputs(operands[0][0])
    return call.all_outputs(unite_operands(call, operands, len(call.shape)))


# Operations that torch does not tag as pointwise although they are.
RULES: RuleTable = table(
    pointwise,
    """where copy masked_fill lerp addcmul addcdiv clamp hardtanh hardswish hardsigmoid silu gelu elu
    leaky_relu mish softplus relu relu6 sigmoid tanh dropout native_dropout fill zero bernoulli
    nan_to_num floor_divide normal uniform prelu _prelu_kernel tril triu rrelu_with_noise
    log_sigmoid_forward exponential random complex polar""",
)
