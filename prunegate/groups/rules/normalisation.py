"""Normalisation layers: per channel, over channels, or over groups of channels."""

from __future__ import annotations

from prunegate.groups.labels import Labels, on_axis, varying
from prunegate.groups.partition import Ids
from prunegate.groups.rules.call import Call, RuleTable, table
from prunegate.groups.rules.pointwise import Operand, unite_operands

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
    training = bool(call.arguments.get("training", call.arguments.get("train", False)))
    labels = []
    for label in call.labels_of(call.inputs[0]):
        if training and varying(label) != (1,):
            call.pin(label, _STATISTICS)
        else:
            labels.append(label)
    united = _per_channel(call, tuple(labels), "weight bias running_mean running_var")
    return [united, *([()] * (len(call.outputs) - 1))]


def _over_last_dims(call: Call) -> list[Labels]:
    """LayerNorm and RMSNorm: a channel that is left out would change the statistics of all the others."""
    x = call.inputs[0]
    first = x.dim() - len(call["normalized_shape"])
    free: list[Ids] = []
    for label in call.labels_of(x):
        inside = [d for d in varying(label) if d >= first]
        if not inside:
            free.append(label)
        elif len(inside) == len(varying(label)):
            call.pin(label, _STATISTICS)
        else:
            # Normalised within each unit (a head's width): the unit is whole, and its inside stays.
            for dim in inside:
                label = call.constraints.tie_along(label, dim)
            free.append(label)
    for name in ("weight", "bias"):
        vector = call.arguments.get(name)
        if vector is not None:
            call.pin(call.labels_of(vector), _STATISTICS)
    return [call.keep(free), *([()] * (len(call.outputs) - 1))]


def _group_norm(call: Call) -> list[Labels]:
    """Whole groups where groups are many; with few groups the statistics run over what would go."""
    x = call.inputs[0]
    groups = int(call.arguments.get("group", call.arguments.get("num_groups", 1)))
    labels = []
    for label in call.labels_of(x):
        if varying(label) != (1,):
            call.pin(label, _STATISTICS)
        else:
            labels.append(label)
    united = _per_channel(call, tuple(labels), "weight bias")
    for label in united:
        width = label.size // groups
        if groups >= width:
            call.constraints.tie_along(label.reshape(groups, width), 1)
        else:
            call.pin(label, _STATISTICS)
    return [united, *([()] * (len(call.outputs) - 1))]


RULES: RuleTable = {
    **table(
        _batch_norm,
        """native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm
        _native_batch_norm_legit_functional batch_norm _batch_norm_with_update _batch_norm_no_update""",
    ),
    **table(_over_last_dims, "native_layer_norm layer_norm _fused_rms_norm rms_norm"),
    **table(_group_norm, "native_group_norm group_norm"),
}
