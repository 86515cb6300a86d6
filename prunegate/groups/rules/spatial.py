"""Pooling and resizing: every channel by itself, positions mixed."""

from __future__ import annotations

import re

from prunegate.groups.labels import Labels, varying
from prunegate.groups.rules.call import Call, RuleTable, table


def _spatial(call: Call) -> list[Labels]:
    source = call.inputs[0]
    found = re.search(r"(\d)d", call.name)
    mixed = int(found.group(1)) if found else 2
    for other in call.inputs[1:]:
        call.pin(call.labels_of(other), "used as coordinates")
    kept = []
    for label in call.labels_of(source):
        if any(d >= source.dim() - mixed for d in varying(label)):
            call.pin(label, "mixed with its neighbours by pooling or resizing")
        else:
            kept.append(label)
    return call.all_outputs(tuple(kept))


def _sampled(call: Call) -> list[Labels]:
    """Each sample has coordinates of its own, which stay: where heads lie beside samples, all lose the same places."""
    (labels, *_) = _spatial(call)
    tied = tuple(call.constraints.tie_along(label, 0) for label in labels)
    return call.all_outputs(tied)


def _roi(call: Call) -> list[Labels]:
    """Regions of interest: (images, channels, height, width) to (regions, channels, height, width)."""
    source = call.inputs[0]
    for other in call.inputs[1:]:
        call.pin(call.labels_of(other), "used as coordinates")
    kept = []
    for label in call.labels_of(source):
        if varying(label) == (1,):
            kept.append(label)
        else:
            call.pin(label, "regions are cut out along this dimension")
    return call.all_outputs(tuple(kept))


_POOLS = [f"{prefix}{kind}_pool{n}d" for prefix in ("", "_", "adaptive_", "_adaptive_", "mkldnn_")
          for kind in ("avg", "max") for n in (1, 2, 3)]  # fmt: skip
_RESIZES = [f"{prefix}upsample_{mode}" for prefix in ("", "_") for mode in (
    "nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "trilinear3d", "bicubic2d",
    "nearest_exact1d", "nearest_exact2d", "nearest_exact3d", "bilinear2d_aa", "bicubic2d_aa")]  # fmt: skip

RULES: RuleTable = {
    **table(_spatial, " ".join(_POOLS + _RESIZES)),
    **table(_spatial, "max_pool2d_with_indices max_pool3d_with_indices"),
    **table(_sampled, "grid_sampler_2d grid_sampler_3d"),
    **table(_roi, "roi_align roi_pool ps_roi_align"),
}
