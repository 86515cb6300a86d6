"""Matrix products: two axes are summed away together, the others go on."""

from __future__ import annotations

import numpy as np
import torch

from prunegate.groups.constraints import Contraction
from prunegate.groups.labels import Labels, Shape, along, on_axis, varying
from prunegate.groups.partition import Ids
from prunegate.groups.rules.call import Call, RuleTable, table
from prunegate.groups.rules.pointwise import unite_operands


def contract(call: Call, left: torch.Tensor, right: torch.Tensor) -> Labels:
    """Labels of ``left @ right`` with shapes (b, n, k) and (b, k, m), or without b; the product's cost is noted."""
    batched = left.dim() == 3
    left_labels, left_shape = _batched(call.labels_of(left), call.shape_of(left))
    right_labels, right_shape = _batched(call.labels_of(right), call.shape_of(right))
    batch = max(left_shape[0], right_shape[0])
    _note_cost(call, left_labels, right_labels, (batch, left_shape[1], left_shape[2], right_shape[2]))

    left_kept, left_summed = _take(call, left_labels, row=1, summed=2)
    right_kept, right_summed = _take(call, right_labels, row=2, summed=1)
    shared = _sum_away(call, (left, left_summed), (right, right_summed), left_shape[2])
    _split_values(call, right_kept)
    call.constraints.produced += [label for label in left_kept + right_kept if len(varying(label)) == 1]

    operands = [
        ((*left_kept, *shared), (left_shape[0], left_shape[1], 1)),
        ((*right_kept, *shared), (right_shape[0], 1, right_shape[2])),
    ]
    labels = unite_operands(call, operands, 3)
    return labels if batched else tuple(label[0] for label in labels)


def _batched(labels: Labels, shape: Shape) -> tuple[Labels, Shape]:
    if len(shape) == 3:
        return labels, shape
    return tuple(label[None] for label in labels), (1, *shape)


def _take(call: Call, labels: Labels, row: int, summed: int) -> tuple[Labels, Ids | None]:
    """Separate the label of the summed axis from those that go on."""
    kept: list[Ids] = []
    contracted = None
    for label in labels:
        dims = varying(label)
        if summed in dims and row in dims:
            call.pin(label, "one unit lies on the summed and on a remaining axis of a matrix product")
        elif summed in dims:
            contracted = label if summed == 2 else label.swapaxes(1, 2)
        else:
            kept.append(label)
    return tuple(kept), contracted


def _sum_away(
    call: Call, left: tuple[torch.Tensor, Ids | None], right: tuple[torch.Tensor, Ids | None], length: int
) -> Labels:
    """Tie the two summed axes, both (b or 1, 1, k); units that also vary over the batch go on with it.

    A head of an attention is such a unit: its width is summed, so it lives or dies as a whole, unless there are
    more places within the heads than heads.
    """
    (left_tensor, a), (right_tensor, b) = left, right
    if length == 1:
        return ()
    if a is None or b is None:
        for label in (a, b):
            if label is not None:
                call.pin(label, "summed against channels that cannot be removed")
        return ()
    call.constraints.tie(a, b)
    wide = a if a.shape[0] >= b.shape[0] else b
    if wide.shape[0] > 1:
        if _split_heads(call, (left_tensor, a), (right_tensor, b)):
            return ()
        return call.keep([call.constraints.tie_along(wide, 2)])
    weights = call.consume(right_tensor, b) or call.consume(left_tensor, a)
    if not (weights or any(call.mask(np.ravel(ids), reads=True) for ids in (b, a) if ids.size == length)):
        call.pin(a, "summed in a product of two activations, where nothing can be masked")
    return ()


def _split_heads(call: Call, left: tuple[torch.Tensor, Ids], right: tuple[torch.Tensor, Ids]) -> bool:
    """Take the places of the summed width for units, the same in all heads, and mask the product there.

    What is removed from a rectangular tensor is whole heads, or as many places from each of them: whichever are
    more. False where that is the heads, or where the product cannot leave places out.
    """
    labels = (left[1], right[1])
    heads = max(len(np.unique(label[:, 0, 0])) for label in labels)
    stored = any(call.values.origin(tensor) is not None for tensor, _ in (left, right))
    if heads >= left[1].shape[2] or stored or call.module in call.constraints.whole_heads:
        return False
    if not any(label.shape[0] > 1 and call.mask(label[0].reshape(-1), reads=True, repeated=True) for label in labels):
        return False
    for label in labels:
        call.constraints.tie_along(label, 0)
    call.constraints.split_heads.append((call.module, labels[0][0].reshape(-1)))
    return True


def _split_values(call: Call, labels: Labels) -> None:
    """The values of an attention lose the places that its queries and keys lose: code holds one width of heads."""
    for label in labels:
        if varying(label) != (0, 2):
            continue
        places = next((ids for module, ids in reversed(call.constraints.split_heads) if module == call.module), None)
        if places is not None and label.shape[2] == places.size:
            call.constraints.tie(call.constraints.tie_along(label, 0).reshape(-1), places)


def _note_cost(call: Call, left: Labels, right: Labels, sizes: Shape) -> None:
    """The loops are batch, row, summed and column; labels are laid out over them."""
    labels = [label[:, :, :, None] for label in left] + [label[:, None, :, :] for label in right]
    call.constraints.contractions.append(Contraction(call.module, call.name, sizes, tuple(labels)))


def _mm(call: Call) -> list[Labels]:
    return [contract(call, call.inputs[0], call.inputs[1])]


def _addmm(call: Call) -> list[Labels]:
    bias, left, right = call.inputs[:3]
    product = contract(call, left, right)
    operands = [(product, call.shape), (call.labels_of(bias), call.shape_of(bias))]
    return [unite_operands(call, operands, len(call.shape))]


def _mv(call: Call) -> list[Labels]:
    """Matrix times vector. A stored matrix is masked along both of its axes, so the result is zero where rows are out.

    Spectral norm is such a product: what it makes of a weight is then what it makes of the weight's kept part.
    """
    matrix, vector = call.inputs[:2]
    kept, column = [], None
    for label in call.labels_of(matrix):
        if varying(label) == (0,):
            kept.append(label[:, 0])
            if call.consume(matrix, label):
                call.values.set_zeroed(call.outputs[0])
        elif varying(label) == (1,):
            column = label[0]
        else:
            call.pin(label, "one unit lies on the summed and on a remaining axis of a matrix product")
    _sum_with_vector(call, (matrix, column), (vector, _only(call, vector)))
    return [tuple(kept)]


def _dot(call: Call) -> list[Labels]:
    """Vector times vector."""
    left, right = call.inputs[:2]
    _sum_with_vector(call, (left, _only(call, left)), (right, _only(call, right)))
    return [()]


def _only(call: Call, vector: torch.Tensor) -> Ids | None:
    return next((label for label in call.labels_of(vector) if label.size > 1), None)


def _sum_with_vector(call: Call, left: tuple[torch.Tensor, Ids | None], right: tuple[torch.Tensor, Ids | None]) -> None:
    (left_tensor, a), (right_tensor, b) = left, right
    if a is None or b is None:
        for ids in (a, b):
            if ids is not None:
                call.pin(ids, "summed against channels that cannot be removed")
        return
    call.constraints.tie(a, b)
    if any(call.values.is_zeroed(tensor) for tensor in (left_tensor, right_tensor)):
        return
    matrix = left_tensor.dim() == 2 and call.consume(left_tensor, a)
    if not (matrix or call.mask(b) or call.mask(a)):
        call.pin(a, "summed in a product with a vector, where nothing can be masked")


def _embedding(call: Call) -> list[Labels]:
    """Rows are picked by the data, so they stay; columns are produced like a layer's outputs."""
    weight, indices = call.tensor("weight"), call.tensor("indices")
    call.pin(call.labels_of(indices), "used as an index")
    result = []
    for label in call.labels_of(weight):
        if varying(label) == (1,):
            ids = np.ravel(label)
            call.constraints.produced.append(ids)
            result.append(on_axis(ids, indices.dim(), indices.dim() + 1))
        else:
            call.pin(label, "rows are picked by an index tensor")
    return [tuple(result)]


def column(labels: Labels, dim: int, length: int) -> Ids | None:
    """The ids along one dimension as a flat array, if a label varies on that dimension alone."""
    label = along(labels, dim)
    return label.reshape(-1) if label is not None and label.size == length else None


RULES: RuleTable = {
    **table(_mm, "mm bmm"),
    **table(_addmm, "addmm baddbmm _addmm_activation"),
    **table(_mv, "mv"),
    **table(_dot, "dot vdot"),
    **table(_embedding, "embedding"),
}
