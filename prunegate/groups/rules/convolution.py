"""Convolutions: plain, grouped, depthwise and transposed, in any number of dimensions."""

from __future__ import annotations

import math
from dataclasses import replace

from prunegate.groups.rules.call import Call, RuleTable, table
from prunegate.groups.rules.contraction import column
from prunegate.groups.rules.pointwise import unite_operands
from prunegate.groups.solving.constraints import Contraction, Pin
from prunegate.groups.solving.labels import Labels, on_axis, varying
from prunegate.groups.solving.partition import Ids

_KERNEL = Pin("lies along the kernel of a convolution", "convolution")
_FIXED = "its input channels cannot be removed"
_WIDTH_STAYS = "whole groups of this convolution are removed, their width stays"


def _convolution(call: Call) -> list[Labels]:
    x, weight = call.tensor("input"), call.tensor("weight")
    transposed, groups = bool(call.arguments.get("transposed", False)), int(call["groups"])
    channel_labels, batch_labels = _input_labels(call)
    out_axis, in_axis = (1, 0) if transposed else (0, 1)
    weight_shape = call.shape_of(weight)
    weight_labels = call.labels_of(weight)
    in_ids = column(weight_labels, in_axis, weight_shape[in_axis])
    out_ids = column(weight_labels, out_axis, weight_shape[out_axis])

    loops = call.shape_of(x) if transposed else call.shape
    constant = loops[0] * math.prod(loops[2:]) * math.prod(weight_shape[2:])
    labels = []
    for label in weight_labels:
        if varying(label) in ((0,), (1,)):
            labels.append(label.reshape(1, *label.shape[:2]))
        else:
            call.constraints.pin(label, _KERNEL)
    sizes = (constant, weight_shape[0], weight_shape[1])
    call.constraints.contractions.append(Contraction(call.module, call.name, sizes, tuple(labels)))

    if groups == 1:
        call.read(weight, in_ids, channel_labels, _FIXED)
        produced = out_ids
    elif transposed:
        produced = _grouped_transposed(call, channel_labels, in_ids, out_ids, groups)
    else:
        produced = _grouped(call, channel_labels, in_ids, out_ids, groups)

    result = batch_labels
    ndim = len(call.shape)
    if produced is not None and call.shape[1] > 1:
        call.constraints.produced.append(produced)
        result = (*batch_labels, on_axis(produced, 1, ndim))
    bias = call.arguments.get("bias")
    if bias is None:
        return [result]
    bias_labels = tuple(on_axis(label.reshape(-1), 1, ndim) for label in call.labels_of(bias))
    shape = tuple(s if d == 1 else 1 for d, s in enumerate(call.shape))
    return [unite_operands(call, [(result, shape), (bias_labels, shape)], ndim)]


def _input_labels(call: Call) -> tuple[Ids | None, Labels]:
    """The input's channel label, shape (batch or 1, channels), and the labels over the batch only."""
    x = call.tensor("input")
    channels, batch = None, []
    why = "a unit lies along the positions that a convolution mixes"
    for label in call.clear_of(call.labels_of(x), range(2, x.dim()), why):
        dims = varying(label)
        if dims == (0,):
            batch.append(label)
        elif 1 in dims:
            channels = label
    return (None if channels is None else channels.reshape(channels.shape[:2])), tuple(batch)


def _grouped(call: Call, channels: Ids | None, in_ids: Ids | None, out_ids: Ids | None, groups: int) -> Ids | None:
    """Units of a grouped convolution: whole groups, or one position in every group.

    A whole group is one unit of both inputs and outputs. Positions are separate units of inputs, read by the weight,
    and of outputs.
    """
    width_in, width_out = int(call.tensor("weight").shape[1]), call.shape[1] // groups
    outputs = None if out_ids is None else out_ids.reshape(groups, width_out)
    inputs = _fold_batch(call, channels)
    tie_along = call.constraints.tie_along

    def whole() -> None:
        call.pin_present(_WIDTH_STAYS, in_ids)
        if inputs is not None and outputs is not None:
            call.constraints.tie(tie_along(inputs.reshape(groups, -1), 1), outputs)
            return
        call.pin_present(_FIXED, inputs, outputs)

    def places() -> None:
        if outputs is not None:
            tie_along(outputs, 0)
        if inputs is not None:
            call.read(call.tensor("weight"), in_ids, tie_along(inputs.reshape(groups, width_in), 0), _FIXED)
        else:
            call.pin_present(_FIXED, in_ids)

    if width_in * width_out == 1:
        whole()
    else:
        call.either("groups", whole, places, by_itself=places if groups < width_in else whole)
    return out_ids


def _grouped_transposed(
    call: Call, channels: Ids | None, in_ids: Ids | None, out_ids: Ids | None, groups: int
) -> Ids | None:
    """The same; the weight is (inputs, outputs of a group): outputs of different groups share an index there."""
    inputs = _fold_batch(call, channels)
    width_in, width_out = int(call.tensor("weight").shape[0]) // groups, call.shape[1] // groups
    made = call.constraints.new_axis("constant", "outputs", 1, groups * width_out)
    outputs = made.reshape(groups, width_out)
    tie_along = call.constraints.tie_along

    def whole() -> None:
        call.pin_present(_WIDTH_STAYS, out_ids)
        if inputs is None or in_ids is None:
            call.pin_present(_FIXED, inputs, in_ids, made)
            return
        call.constraints.tie(inputs, in_ids)
        call.constraints.tie(tie_along(in_ids.reshape(groups, -1), 1), outputs)

    def places() -> None:
        if out_ids is None:
            call.pin(made, "a single place in every group")
        else:
            call.constraints.tie(out_ids[None], outputs)
        if inputs is not None and in_ids is not None:
            tie_along(in_ids.reshape(groups, width_in), 0)
        call.read(call.tensor("weight"), in_ids, inputs, _FIXED)

    if width_in * width_out == 1:
        whole()
    else:
        call.either("groups", whole, places, by_itself=whole)
    return made


def _fold_batch(call: Call, channels: Ids | None) -> Ids | None:
    """Make channels that also vary over the batch the same units for every sample."""
    return None if channels is None else call.constraints.tie_along(channels, 0).reshape(-1)


def _deformable(call: Call) -> list[Labels]:
    """A convolution that samples at offsets; all channels of one offset group use the same offsets."""
    x = call.tensor("input")
    for name in ("offset", "mask"):
        call.pin(call.labels_of(call.tensor(name)), "used as coordinates")
    if int(call["offset_groups"]) > 1:
        for label in call.labels_of(x):
            if varying(label) == (1,):  # code and kernel need equally many channels per offset group
                call.constraints.tie_along(label.reshape(int(call["offset_groups"]), -1), 0)
    return _convolution(replace(call, arguments={**call.arguments, "transposed": False}))


RULES: RuleTable = {**table(_convolution, "convolution"), **table(_deformable, "deform_conv2d")}
