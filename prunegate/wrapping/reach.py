"""How much the gates can remove: the cost of the fewest units allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunegate.compaction.plan import Mask
from prunegate.costs import CostModel
from prunegate.groups import Analysis


@dataclass(frozen=True)
class Reach:
    """What the gates of one back-end can remove at most, as shares of the dense model in [0, 1]."""

    macs_share: float
    params_share: float

    @classmethod
    def of(cls, analysis: Analysis, steps: int | Sequence[int]) -> Reach:
        """The reach of all gates that an analysis offers."""
        keep, costs = fewest_units(analysis, steps), cost_models(analysis)
        macs, params = (
            1.0 - cost.exact(keep) / cost.dense() if cost.dense() else 0.0 for cost in (costs["macs"], costs["params"])
        )
        return cls(macs, params)


def cost_models(analysis: Analysis) -> dict[str, CostModel]:
    """MACs per sample, and parameters, as functions of the masks."""
    return {
        "macs": CostModel(analysis.multiply_accumulates, analysis.num_units, analysis.batch_size),
        "params": CostModel(analysis.parameters, analysis.num_units),
    }


def fewest_units(analysis: Analysis, steps: int | Sequence[int]) -> Mask:
    """A mask that keeps as few units of every group as allowed, in steps of a size for all groups or one of each."""
    keep = np.zeros(analysis.num_units, dtype=bool)
    each = [steps] * len(analysis.groups) if isinstance(steps, int) else steps
    for group, given in zip(analysis.groups, each, strict=True):
        step = group.step(given)
        fewest = -(-group.least // step) * step
        keep[group.first_unit : group.first_unit + min(fewest, group.num_units)] = True
    return keep
