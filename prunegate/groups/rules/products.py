"""Products of other forms: experts, sparse matrices, distances, three factors."""

from __future__ import annotations

import math

from prunegate.groups.rules.call import Call, RuleTable, table
from prunegate.groups.rules.contraction import UNREMOVABLE, column
from prunegate.groups.rules.pointwise import Operand, unite_operands
from prunegate.groups.solving.constraints import Contraction
from prunegate.groups.solving.labels import Labels, align, on_axis, varying
from prunegate.groups.solving.partition import Ids

# The kernel for experts needs rows of a multiple of 16 bytes, which is this many numbers in bfloat16.
_ALIGNED = 8


def _by_experts(call: Call) -> list[Labels]:
    """Rows sorted by expert, each part times its own matrix: (rows, k) and (experts, k, n) to (rows, n)."""
    rows, weight = call.inputs[:2]
    labels, (_, read, made) = call.labels_of(weight), call.shape_of(weight)
    own, produced = column(labels, 1, read), column(labels, 2, made)
    for label in labels:
        if label.shape[0] > 1:
            call.pin(label, "experts are picked by the router, so all of them are kept")
    given = column(call.labels_of(rows), 1, read)
    call.read(weight, own, given, UNREMOVABLE)
    sizes = (call.shape[0], read, made)
    summed = () if own is None else (on_axis(own, 1, 3),)
    kept = () if produced is None else (on_axis(produced, 2, 3),)
    call.constraints.contractions.append(Contraction(call.module, call.name, sizes, (*summed, *kept)))
    call.constraints.multiples += [(ids, _ALIGNED) for ids in (own, given, produced) if ids is not None]
    if produced is None:
        return [()]
    call.constraints.produced.append(produced)
    return [(on_axis(produced, 1, 2),)]


def _sparse(call: Call) -> list[Labels]:
    """A sparse matrix, whose pattern is unknown without data, times a dense one, or the reverse."""
    left, right = call.inputs[-2:]
    why = "summed with the entries of a sparse matrix"
    operands: list[Operand] = [
        (call.clear_of(call.labels_of(left), (1,), why), (call.shape_of(left)[0], 1)),
        (call.clear_of(call.labels_of(right), (0,), why), (1, call.shape_of(right)[1])),
    ]
    operands += [(call.labels_of(added), call.shape_of(added)) for added in call.inputs[:-2]]
    return [unite_operands(call, operands, 2)]


def _distances(call: Call) -> list[Labels]:
    """`torch.cdist`: distances of all rows of one tensor to all rows of another, summed over their last dimensions."""
    left, right = call.inputs[:2]
    ndim = len(call.shape)
    summed: list[Ids | None] = []
    operands: list[Operand] = []
    for tensor, beside in ((left, -1), (right, -2)):
        labels, dims = call.labels_of(tensor), tensor.dim()
        summed.append(column(labels, dims - 1, call.shape_of(tensor)[-1]))
        kept = [label for label in labels if label.shape[-1] == 1]
        call.pin(tuple(x for x in labels if x.shape[-1] > 1 and len(varying(x)) > 1), "summed in a distance")
        # Rows of the first lie along the second-to-last dimension, those of the second along the last.
        laid = tuple(align(x if beside == -1 else x.swapaxes(-1, -2), ndim) for x in kept)
        rows = call.shape_of(tensor)[-2]
        operands.append((laid, (*call.shape_of(tensor)[:-2], *((rows, 1) if beside == -1 else (1, rows)))))
    first, second = summed
    if first is not None and second is not None:
        call.constraints.tie(first, second)
    for ids in summed:
        if ids is not None and (first is None or second is None or not call.mask(ids, reads=True)):
            call.pin(ids, "summed in a distance from channels that cannot be removed")
    return [unite_operands(call, operands, ndim)]


def _bilinear(call: Call) -> list[Labels]:
    """`torch.nn.functional.bilinear`: two inputs, each summed with an axis of the weight, whose first is produced."""
    first, weight, second = (call.tensor(name) for name in ("i1", "i2", "i3"))
    if list(call["sumdim"]) != [2, 3] or list(call["expand1"]) != [1, 3] or list(call["expand3"]) != [1, 2]:
        for tensor in call.inputs:
            call.pin(call.labels_of(tensor), "multiplied in a product of three tensors")
        return [()]
    shape, labels = call.shape_of(weight), call.labels_of(weight)
    rows: list[Operand] = []
    for axis, x in ((1, first), (2, second)):
        own = column(labels, axis, shape[axis])
        given = column(call.labels_of(x), x.dim() - 1, shape[axis])
        if given is None:
            beside = call.clear_of(call.labels_of(x), (x.dim() - 1,), "one unit lies on a summed dimension")
        else:
            beside = tuple(label for label in call.labels_of(x) if label.shape[-1] == 1)
        rows.append((beside, (*call.shape_of(x)[:-1], 1)))
        call.read(weight, own, given, UNREMOVABLE)
    sizes = (math.prod(call.shape[:-1]), *shape)
    nest = tuple(label[None] for label in labels if len(varying(label)) == 1)
    call.constraints.contractions.append(Contraction(call.module, call.name, sizes, nest))
    produced = column(labels, 0, shape[0])
    if produced is not None:
        call.constraints.produced.append(produced)
        rows.append(
            ((on_axis(produced, len(call.shape) - 1, len(call.shape)),), (*[1] * (len(call.shape) - 1), shape[0]))
        )
    return [unite_operands(call, rows, len(call.shape))]


RULES: RuleTable = {
    **table(_by_experts, "_grouped_mm grouped_mm_fallback"),
    **table(_sparse, "_sparse_addmm _sparse_mm"),
    **table(_distances, "_cdist_forward _euclidean_dist"),
    **table(_bilinear, "_trilinear"),
}
