"""Matrix products: two axes are summed, the others remain."""

from __future__ import annotations

import numpy as np
import torch

from prunegate.groups.rules.call import Call, RuleTable, table
from prunegate.groups.rules.pointwise import unite_operands
from prunegate.groups.rules.within import choose_within, head_ids
from prunegate.groups.solving.constraints import Contraction
from prunegate.groups.solving.labels import Labels, Shape, along, on_axis, varying
from prunegate.groups.solving.partition import Ids

UNREMOVABLE = "summed against channels that cannot be removed"


def contract(call: Call, left: torch.Tensor, right: torch.Tensor) -> Labels:
    """Labels of ``left @ right`` with shapes (b, n, k) and (b, k, m), or without b; records the product's cost."""
    batched = left.dim() == 3
    left_labels, left_shape = _batched(call.labels_of(left), call.shape_of(left))
    right_labels, right_shape = _batched(call.labels_of(right), call.shape_of(right))
    batch = max(left_shape[0], right_shape[0])
    _note_cost(call, left_labels, right_labels, (batch, left_shape[1], left_shape[2], right_shape[2]))

    left_kept, left_summed = _take(call, left_labels, row=1, summed=2)
    right_kept, right_summed = _take(call, right_labels, row=2, summed=1)
    shared = _sum_away(call, (left, left_summed), (right, right_summed), left_shape[2])
    call.constraints.produced += [label for label in left_kept + right_kept if len(varying(label)) == 1]

    operands = [
        ((*left_kept, *shared), (left_shape[0], left_shape[1], 1)),
        ((*right_kept, *shared), (right_shape[0], 1, right_shape[2])),
    ]
    places = _places_of(call, right_kept)
    if places is not None and not any(0 in varying(label) for label in (*left_kept, *shared)):
        # Queries were picked by an index and do not show heads: head dimensions are removed, as from the values.
        values = next(label for label in right_kept if varying(label) == (0, 2))
        call.constraints.tie(call.constraints.tie_along(values, 0).reshape(-1), places)
    labels = unite_operands(call, operands, 3, places)
    return labels if batched else tuple(label[0] for label in labels)


def _batched(labels: Labels, shape: Shape) -> tuple[Labels, Shape]:
    if len(shape) == 3:
        return labels, shape
    return tuple(label[None] for label in labels), (1, *shape)


def _take(call: Call, labels: Labels, row: int, summed: int) -> tuple[Labels, Ids | None]:
    """Separate the label of the summed axis from the remaining ones."""
    kept: list[Ids] = []
    contracted = None
    for label in labels:
        dims = varying(label)
        if set(dims) == {summed, row} and contracted is None:
            rows, columns = _rows_or_columns(call, label, row, summed)
            kept.append(rows)
            contracted = columns if summed == 2 else columns.swapaxes(1, 2)
        elif summed in dims and row in dims:
            call.pin(label, "one unit lies on the summed and on a remaining axis of a matrix product")
        elif summed in dims:
            contracted = label if summed == 2 else label.swapaxes(1, 2)
        else:
            kept.append(label)
    return tuple(kept), contracted


def _rows_or_columns(call: Call, label: Ids, row: int, summed: int) -> tuple[Ids, Ids]:
    """Labels of rows and of summed columns of a computed matrix, of which either can be removed."""
    rows, columns = head_ids(call, label, summed), head_ids(call, label, row)

    def choose(kept: Ids, stay: Ids, along: int) -> None:
        call.constraints.tie(kept, call.constraints.tie_along(label, along))
        call.pin(stay, "the other dimension of a computed matrix is removed")

    call.either("groups", lambda: choose(rows, columns, summed), lambda: choose(columns, rows, row))
    return rows, columns


def _sum_away(
    call: Call, left: tuple[torch.Tensor, Ids | None], right: tuple[torch.Tensor, Ids | None], length: int
) -> Labels:
    """Tie the two summed axes, both (b or 1, 1, k); units that also vary over the batch remain.

    An attention head is such a unit, as its width is summed.
    """
    (left_tensor, a), (right_tensor, b) = left, right
    if length == 1:
        return ()
    if a is None or b is None:
        given = [label for label in (a, b) if label is not None]
        return call.clear_of(given, (2,), UNREMOVABLE)
    call.constraints.tie(a, b)
    wide = a if a.shape[0] >= b.shape[0] else b
    if wide.shape[0] > 1:
        return _choose_heads(call, (left_tensor, a), (right_tensor, b), wide)
    weights = call.consume(right_tensor, b) or call.consume(left_tensor, a)
    if not (weights or any(call.mask(np.ravel(ids), reads=True) for ids in (b, a) if ids.size == length)):
        call.pin(a, "summed in a product of two activations, where nothing can be masked")
    return ()


def _choose_heads(call: Call, left: tuple[torch.Tensor, Ids], right: tuple[torch.Tensor, Ids], wide: Ids) -> Labels:
    """The label of an attention's heads in a product over their width, whose dimensions can also be removed."""
    sides = (left, right)
    # In a product of two weights, dimensions cannot be masked.
    stored = any(call.values.origin(tensor) is not None for tensor, _ in sides)
    heads = head_ids(call, wide, 2)

    def leaves_out(places: Ids) -> bool:
        return not stored and any(
            ids.shape[0] > 1 and call.mask(ids[0].reshape(-1), reads=True, repeated=True) for _, ids in sides
        )

    call.constraints.head_places.append((call.module, wide[0].reshape(-1)))
    prefers_dimensions = len(np.unique(heads)) < wide.shape[2] and not stored
    choose_within(call, wide, 2, leaves_out, heads=heads, prefers_dimensions=prefers_dimensions)
    return call.keep([heads])


def _places_of(call: Call, labels: Labels) -> Ids | None:
    """The head dimensions of queries and keys that those of the values are tied to, as code has one head width."""
    for label in labels:
        if varying(label) == (0, 2):
            results = (ids for module, ids in reversed(call.constraints.head_places) if module == call.module)
            places = next(results, None)
            return places if places is not None and label.shape[2] == places.size else None
    return None


def _note_cost(call: Call, left: Labels, right: Labels, sizes: Shape) -> None:
    """Record the cost: the loops are batch, row, summed and column, and labels lie along them."""
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
    """Matrix times vector. A stored matrix is masked along both of its axes, so the result is zero for removed rows.

    Spectral norm is such a product: its result for a weight then equals that for the weight's kept part.
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
        call.pin_present(UNREMOVABLE, a, b)
        return
    call.constraints.tie(a, b)
    if any(call.values.is_zeroed(tensor) for tensor in (left_tensor, right_tensor)):
        return
    matrix = left_tensor.dim() == 2 and call.consume(left_tensor, a)
    if not (matrix or call.mask(b) or call.mask(a)):
        call.pin(a, "summed in a product with a vector, where nothing can be masked")


def _embedding(call: Call) -> list[Labels]:
    """Rows are picked by the data, so they are kept; columns are produced like a layer's outputs."""
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
    """The ids along one dimension as a flat array, if a label varies only on that dimension."""
    label = along(labels, dim)
    return label.reshape(-1) if label is not None and label.size == length else None


RULES: RuleTable = {
    **table(_mm, "mm bmm"),
    **table(_addmm, "addmm baddbmm _addmm_activation"),
    **table(_mv, "mv"),
    **table(_dot, "dot vdot"),
    **table(_embedding, "embedding"),
}
