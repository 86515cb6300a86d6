"""Pooling, resizing and similar operations, which mix positions within each channel."""

from __future__ import annotations

import math
import re

import numpy as np
import torch

from prunegate.groups.rules.call import Call, RuleTable, table
from prunegate.groups.rules.pointwise import unite_operands
from prunegate.groups.solving.labels import Labels, Shape

_MIXED = "mixed with its neighbours by pooling or resizing"


def _spatial(call: Call) -> list[Labels]:
    source = call.inputs[0]
    result = re.search(r"(\d)d", call.name)
    mixed = int(result.group(1)) if result else 2
    for other in call.inputs[1:]:
        call.pin(call.labels_of(other), "used as coordinates")
    positions = range(source.dim() - mixed, source.dim())
    return call.all_outputs(call.clear_of(call.labels_of(source), positions, _MIXED))


def _unpooled(call: Call) -> list[Labels]:
    """Every entry is written at its index within its channel; the indices come from pooling."""
    source = call.inputs[0]
    positions = range(source.dim() - int(call.name[-2]), source.dim())
    operands = [(call.clear_of(call.labels_of(x), positions, _MIXED), _beside(call, x, positions)) for x in call.inputs]
    return [unite_operands(call, operands, source.dim())]


def _beside(call: Call, x: torch.Tensor, positions: range) -> Shape:
    return tuple(1 if d in positions else size for d, size in enumerate(call.shape_of(x)))


def _transformed(call: Call) -> list[Labels]:
    """Fourier transforms: transformed dimensions are mixed and may change their length."""
    source = call.inputs[0]
    dims = {d % source.dim() for d in call["dim"]}
    return [call.clear_of(call.labels_of(source), dims, "mixed with one another by a Fourier transform")]


def _sampled(call: Call) -> list[Labels]:
    """Each sample has its own coordinates, which are kept; if heads are part of the batch, all lose the same
    positions."""
    (labels, *_) = _spatial(call)
    tied = tuple(call.constraints.tie_along(label, 0) for label in labels)
    return call.all_outputs(tied)


def _patches(call: Call) -> list[Labels]:
    """`torch.nn.functional.unfold`: one row per channel and kernel position, and one column per output position."""
    source = call.inputs[0]
    channel = source.dim() - 3
    width = math.prod(call["kernel_size"])
    kept = call.clear_of(call.labels_of(source), (channel + 1, channel + 2), "unfolded along the channels")
    rows = [np.repeat(label, width, axis=channel) if label.shape[channel] > 1 else label for label in kept]
    return [tuple(row.reshape(*row.shape[: channel + 1], 1) for row in rows)]


def _from_patches(call: Call) -> list[Labels]:
    """`torch.nn.functional.fold`: the rows of a channel are summed at its positions."""
    source = call.inputs[0]
    row = source.dim() - 2
    width = math.prod(call["kernel_size"])
    result = []
    for label in call.clear_of(call.labels_of(source), (row + 1,), "folded along the channels"):
        if label.shape[row] > 1:
            rows = label.reshape(*label.shape[:row], label.shape[row] // width, width)
            label = call.constraints.tie_along(rows, row + 1)
        result.append(label.reshape(*label.shape[: row + 1], 1, 1))
    return [call.keep(result)]


def _roi(call: Call) -> list[Labels]:
    """Regions of interest: (images, channels, height, width) to (regions, channels, height, width)."""
    source = call.inputs[0]
    for other in call.inputs[1:]:
        call.pin(call.labels_of(other), "used as coordinates")
    return call.all_outputs(
        call.clear_of(call.labels_of(source), (0, 2, 3), "regions are cut out along this dimension")
    )


_POOLS = [f"{prefix}{kind}_pool{n}d" for prefix in ("", "_", "adaptive_", "_adaptive_", "mkldnn_")
          for kind in ("avg", "max") for n in (1, 2, 3)]  # fmt: skip
_RESIZES = [f"{prefix}upsample_{mode}" for prefix in ("", "_") for mode in (
    "nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "trilinear3d", "bicubic2d",
    "nearest_exact1d", "nearest_exact2d", "nearest_exact3d", "bilinear2d_aa", "bicubic2d_aa")]  # fmt: skip

RULES: RuleTable = {
    **table(_spatial, " ".join(_POOLS + _RESIZES)),
    **table(_spatial, "max_pool2d_with_indices max_pool3d_with_indices"),
    **table(_unpooled, "max_unpool2d max_unpool3d"),
    **table(_patches, "im2col"),
    **table(_from_patches, "col2im"),
    **table(_transformed, "_fft_r2c _fft_c2r _fft_c2c"),
    **table(_sampled, "grid_sampler_2d grid_sampler_3d"),
    **table(_roi, "roi_align roi_pool ps_roi_align"),
}
