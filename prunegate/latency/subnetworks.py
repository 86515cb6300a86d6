"""Random subnetworks, on which predictions are calibrated and checked."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prunegate.wrapping import GatedModel


def random_subnetwork(gated: GatedModel, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
    """A random mask: around one density for the whole model, every group by itself."""
    keep = np.zeros(gated.analysis.num_units, dtype=bool)
    density = generator.uniform(0.15, 1.0)
    for group in gated.groups:
        share = np.clip(density * generator.uniform(0.6, 1.4), 0.0, 1.0)
        count = max(group.least, round(group.num_units * share))
        keep[group.first_unit + generator.permutation(group.num_units)[:count]] = True
    return keep
