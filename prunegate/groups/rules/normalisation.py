"""Normalisation layers: per channel, over channels, or over groups of channels."""

from __future__ import annotations

import math

from prunegate.groups.rules.call import Call, RuleTable, table
from prunegate.groups.rules.pointwise import Operand, unite_operands
from prunegate.groups.rules.within import choose_within
from prunegate.groups.solving.labels import Labels, align, on_axis, varying
from prunegate.groups.solving.partition import Ids

_STATISTICS = "statistics are taken over these channels"


def _per_channel(call: Call, labels: Labels, names: str) -> Labels:
    """Unite the input's labels with those of the named vectors, which lie along dimension 1."""
    x = call.inputs[0]
    operands: list[Operand] = [(labels, call.shape_of(x))]
    for name in names.split():
        vector = call.arguments.get(name)
        if vector is not None:
            laid = tuple(on_axis(label.reshape(-1), 1, x.dim()) for label in call.labels_of(vector))
            operands.append((laid, tuple(s if d == 1 else 1 for d, s in enumerate(call.shape_of(x)))))
    return unite_operands(call, operands, x.dim())


def _batch_norm(call: Call) -> list[Labels]:
    """Batch statistics are taken over all dimensions except 1; standardised weights use this too."""
    training = bool(call.arguments.get("training", call.arguments.get("train", False)))
    labels: list[Ids] = []
    beside: list[Ids] = []
    for label in call.labels_of(call.inputs[0]):
        if 1 in varying(label):
            labels += call.clear_of([label], _all_but_channels(call), _STATISTICS)
        elif not training:
            labels.append(label)
        elif call.mask(label):
            beside.append(label)
        else:
            call.pin(label, _STATISTICS)
    united = _per_channel(call, tuple(labels), "weight bias running_mean running_var")
    return [(*united, *beside), *([()] * (len(call.outputs) - 1))]


def _all_but_channels(call: Call) -> list[int]:
    return [d for d in range(call.inputs[0].dim()) if d != 1]


def _over_last_dims(call: Call) -> list[Labels]:
    """LayerNorm and RMSNorm: statistics are taken over the kept channels."""
    x = call.inputs[0]
    first = x.dim() - len(call["normalized_shape"])
    free: list[Ids] = []
    normalised: list[Ids] = []
    vectors = [
        (call.labels_of(v), call.shape_of(v)) for n in ("weight", "bias") if (v := call.arguments.get(n)) is not None
    ]
    for label in call.labels_of(x):
        inside = [d for d in varying(label) if d >= first]
        if not inside:
            free.append(label)
        elif len(inside) == len(varying(label)):
            normalised.append(label)
        elif len(inside) > 1:
            free += call.clear_of([label], inside, _STATISTICS)
        else:  # normalised within each unit, for example over a head's width
            own = [align(ids, x.dim()) for vector, _ in vectors for ids in vector]
            choose_within(call, label, inside[0], lambda places: call.mask(places, repeated=True), own)
            vectors = []
            free.append(label)
    operands: list[Operand] = [(tuple(normalised), call.shape_of(x)), *vectors]
    united = list(unite_operands(call, operands, x.dim()))
    result = [*call.keep(free), *_masked(call, united)]
    return [tuple(result), *([()] * (len(call.outputs) - 1))]


def _masked(call: Call, labels: list[Ids]) -> list[Ids]:
    """The labels over which statistics can be masked; the others are pinned."""
    result = []
    for label in labels:
        if call.mask(label):
            result.append(label)
        else:
            call.pin(label, _STATISTICS)
    return result


def _group_norm(call: Call) -> list[Labels]:
    """Whole groups if there are many; with few groups, the same position in every group, with masked statistics."""
    x = call.inputs[0]
    groups = int(call.arguments.get("group", call.arguments.get("num_groups", 1)))
    labels = call.clear_of(call.labels_of(x), _all_but_channels(call), _STATISTICS)
    united = _per_channel(call, labels, "weight bias")
    for label in united:
        _choose_groups(call, label, groups)
    return [united, *([()] * (len(call.outputs) - 1))]


def _choose_groups(call: Call, label: Ids, groups: int) -> None:
    channels = label.reshape(groups, -1)
    width = channels.shape[1]

    def whole() -> None:
        call.constraints.tie_along(channels, 1)

    def places() -> None:
        kept = call.constraints.tie_along(channels, 0)
        if math.prod(call.shape_of(call.inputs[0])[2:]) == 1:  # torch rejects statistics of a single value
            call.constraints.needed.append((kept, 2))
        _masked(call, [label])

    if width == 1:
        return
    if groups == 1:
        places()
    else:
        call.either("groups", whole, places, by_itself=whole if groups >= width else places)


def weight_norm(call: Call) -> list[Labels]:
    """A weight divided by its norm over all dimensions except one (-1: over all), with a scale for that dimension."""
    v, g, given = call.tensor("v"), call.tensor("g"), int(call.arguments.get("dim", 0))
    dim = None if given == -1 else given % v.dim()
    own = tuple(label for label in call.labels_of(v) if varying(label) == (dim,))
    beside = [label for label in call.labels_of(v) if varying(label) != (dim,)]
    if dim is None:
        return [tuple(_masked(call, beside))]
    scale = tuple(on_axis(label.reshape(-1), dim, v.dim()) for label in call.labels_of(g))
    shape = tuple(s if d == dim else 1 for d, s in enumerate(call.shape))
    united = unite_operands(call, [(own, shape), (scale, shape)], v.dim())
    return [(*united, *_masked(call, beside))]


RULES: RuleTable = {
    **table(
        _batch_norm,
        """native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm
        _native_batch_norm_legit_functional batch_norm _batch_norm_with_update _batch_norm_no_update""",
    ),
    **table(_over_last_dims, "native_layer_norm layer_norm _fused_rms_norm rms_norm"),
    **table(_group_norm, "native_group_norm group_norm"),
}
