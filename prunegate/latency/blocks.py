"""Which multiples of units run fastest, read from the measured operations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunegate.costs.latency_cost import LatencyCost
from prunegate.groups import ChannelGroup

# Larger multiples come first.
_BLOCKS = (64, 32, 16, 8, 4, 2)
# A block is taken if rounding up to it costs at most this share of what it would if time grew evenly.
_WASTE = 0.35
# Widths that are looked at, in the middle of a group.
_WINDOW = 64


def blocks_of(cost: LatencyCost, groups: Sequence[ChannelGroup]) -> list[int]:
    """For each group, the largest multiple whose missing units would hardly save time: 1 if time grows evenly."""
    return [_block_of(cost, group) for group in groups]


def _block_of(cost: LatencyCost, group: ChannelGroup) -> int:
    size = group.num_units
    fitting = [block for block in _BLOCKS if block <= size // 4]
    if not fitting:
        return 1
    window = min(_WINDOW, size // 2 // fitting[0] * fitting[0])
    first = size // 2 // fitting[0] * fitting[0]
    first = min(first, size - window)
    times = np.array([_time(cost, group, first + more) for more in range(window + 1)])
    per_unit = (times[-1] - times[0]) / window
    if per_unit <= 0:
        return fitting[0]
    for block in fitting:
        places = np.arange(window)
        above = -(-(first + places) // block) * block - first
        inside = above <= window
        waste = (times[above[inside]] - times[places[inside]]).mean()
        if waste <= _WASTE * per_unit * (block - 1) / 2:
            return block
    return 1


def _time(cost: LatencyCost, group: ChannelGroup, count: int) -> float:
    keep = np.ones(cost.num_units, dtype=bool)
    keep[group.first_unit + count : group.first_unit + group.num_units] = False
    return cost.sum_of_surfaces(keep)
