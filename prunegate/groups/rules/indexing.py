"""Reading and writing by index tensors: dimensions other than the indexed ones keep their units.

The code decides the positions in an index tensor, so units along an indexed dimension are pinned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from prunegate.groups.rules.call import Call, RuleTable, table
from prunegate.groups.rules.pointwise import Operand, unite_operands
from prunegate.groups.solving.labels import Labels, Shape, align, along, on_axis, varying

_PICKED, _PLACED = "picked by an index tensor", "placed by an index tensor"


def _index(call: Call) -> list[Labels]:
    """``source[indices]``."""
    source, indexed = call.inputs[0], _indexed(call)
    result = []
    for label in call.clear_of(call.labels_of(source), indexed, _PICKED):
        sizes = [size for d, size in enumerate(label.shape) if d not in indexed]
        first, inserted = _place_of(indexed), len(call.shape) - len(sizes)
        result.append(label.reshape(sizes[:first] + [1] * inserted + sizes[first:]))
    return [tuple(result)]


def _index_put(call: Call) -> list[Labels]:
    """``source[indices] = values``: the values broadcast to the shape of ``source[indices]``."""
    source, values, indexed = call.inputs[0], call.tensor("values"), _indexed(call)
    rest = [d for d in range(source.dim()) if d not in indexed]
    inserted = max(index.dim() if index.dtype not in _MASKS else 1 for index in call["indices"] if index is not None)
    first, ndim = _place_of(indexed), len(rest) + inserted
    shape = (1,) * (ndim - values.dim()) + call.shape_of(values)

    def on_source(sizes: Sequence[int]) -> list[int]:
        """Sizes over ``source[indices]`` mapped to the source's own dimensions."""
        beside = iter([*sizes[:first], *sizes[first + inserted :]])
        return [1 if d in indexed else next(beside) for d in range(source.dim())]

    laid = [align(label, ndim) for label in call.labels_of(values)]
    beside_it = call.clear_of(laid, range(first, first + inserted), _PLACED)
    placed = [label.reshape(on_source(label.shape)) for label in beside_it]
    own = call.clear_of(call.labels_of(source), indexed, _PLACED), _without(call.shape_of(source), indexed)
    return [unite_operands(call, [own, (tuple(placed), tuple(on_source(shape)))], source.dim(), has_tables=False)]


def _index_select(call: Call) -> list[Labels]:
    source = call.inputs[0]
    return [call.clear_of(call.labels_of(source), {call.dim("dim", source.dim())}, _PICKED)]


def _index_add(call: Call) -> list[Labels]:
    """Slices of a source are added to the first tensor along one dimension, or replace its slices."""
    target = call.inputs[0]
    dim = {call.dim("dim", target.dim())}
    call.pin(call.labels_of(call.tensor("index")), "used as an index")
    operands = [_operand(call, tensor, dim) for name in ("self", "source") for tensor in _given(call, name)]
    return [unite_operands(call, operands, target.dim(), has_tables=False)]


def _gather(call: Call) -> list[Labels]:
    """``gather`` and the kinds of ``scatter``: the index has an entry per moved entry.

    An index without units was expanded over channels, and the code that did so will use the actual number of channels.
    If the entries differed between channels, the dry run would show it.
    """
    target, index = call.inputs[0], call.tensor("index")
    ndim = target.dim()
    dim = {call.dim("dim", ndim)}
    index_labels = call.clear_of(call.labels_of(index), dim, "used as an index")
    covered = {d for label in index_labels for d in varying(label)}
    spread = tuple(size if d in covered else 1 for d, size in enumerate(call.shape_of(index)))
    operands = [(index_labels, spread)]
    for name in ("self", "src"):
        for tensor in _given(call, name):
            cropped = {d for d in range(ndim) if call.shape_of(tensor)[d] != call.shape_of(index)[d]}
            operands.append(_operand(call, tensor, dim | cropped))
    return [unite_operands(call, operands, ndim, has_tables=False)]


def _masked_scatter(call: Call) -> list[Labels]:
    """Rows of a source are written at the positions of a mask, which has to be equal for all channels of a row.

    It is if it has one entry for them, or one that was expanded.
    """
    target, mask, source = call.tensor("self"), call.tensor("mask"), call.tensor("source")
    last, shape, rows = len(call.shape) - 1, call.shape_of(mask), call.shape_of(source)
    along_rows = along(call.labels_of(mask), mask.dim() - 1) if shape else None
    whole = not shape or shape[-1] == 1 or (along_rows is not None and call.constraints.is_spread(along_rows))
    if not whole or not rows or rows[-1] != call.shape[-1] or call.shape_of(target) != call.shape:
        return _take(call)
    operands: list[Operand] = [_operand(call, target, set(range(last)))]
    spread = tuple(1 if d < len(shape) - 1 else size for d, size in enumerate(shape))
    operands.append((call.clear_of(call.labels_of(mask), range(len(shape) - 1), "used as an index"), spread))
    moved = call.clear_of(call.labels_of(source), range(len(rows) - 1), _PLACED)
    operands.append((tuple(on_axis(label.reshape(-1), last, last + 1) for label in moved), (*[1] * last, rows[-1])))
    return [unite_operands(call, operands, last + 1)]


def _packed(call: Call) -> list[Labels]:
    """`torch.nn.utils.rnn.pack_padded_sequence`: steps and samples become one dimension, sorted by length."""
    source = call.inputs[0]
    kept = call.clear_of(call.labels_of(source), (0, 1), _PICKED)
    return [tuple(label.reshape(1, *label.shape[2:]) for label in kept), *([()] * (len(call.outputs) - 1))]


def _take(call: Call) -> list[Labels]:
    for tensor in call.inputs:
        call.pin(call.labels_of(tensor), _PICKED)
    return call.all_outputs(())


_MASKS = (torch.bool, torch.uint8)


def _indexed(call: Call) -> list[int]:
    """The source's dimensions that ``indices`` picks from; units along the indices themselves are pinned."""
    indexed: list[int] = []
    dim = 0
    for index in call["indices"]:
        width = index.dim() if index is not None and index.dtype in _MASKS else 1
        if index is not None:
            call.pin(call.labels_of(index), "used as an index")
            indexed += range(dim, dim + width)
        dim += width
    return indexed


def _place_of(indexed: Sequence[int]) -> int:
    """The position of the index tensors' dimensions in the result: that of adjacent indexed ones, otherwise the
    front."""
    adjacent = bool(indexed) and list(indexed) == list(range(indexed[0], indexed[-1] + 1))
    return indexed[0] if adjacent else 0


def _given(call: Call, name: str) -> list[torch.Tensor]:
    value = call.arguments.get(name)
    return [value] if isinstance(value, torch.Tensor) else []


def _operand(call: Call, tensor: torch.Tensor, dims: set[int]) -> Operand:
    return call.clear_of(call.labels_of(tensor), dims, _PLACED), _without(call.shape_of(tensor), dims)


def _without(shape: Shape, dims: Iterable[int]) -> Shape:
    dims = set(dims)
    return tuple(1 if d in dims else size for d, size in enumerate(shape))


RULES: RuleTable = {
    **table(_index, "index _unsafe_index"),
    **table(_index_put, "index_put _index_put_impl _unsafe_index_put"),
    **table(_index_select, "index_select"),
    **table(_index_add, "index_add index_copy index_fill index_reduce"),
    **table(_gather, "gather scatter scatter_add scatter_reduce"),
    **table(_masked_scatter, "masked_scatter"),
    **table(_packed, "_pack_padded_sequence"),
    **table(_take, "take put masked_select"),
}
