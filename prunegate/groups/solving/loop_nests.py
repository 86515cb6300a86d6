"""Costs of contractions and parameters, as products of the numbers of kept units."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from prunegate.groups.analysis import LoopNest
from prunegate.groups.solving.labels import Labels, Shape, collapse, varying
from prunegate.groups.solving.partition import Ids


def loop_nest(module: str, sizes: Shape, labels: Labels, units_of: Ids) -> LoopNest:
    by_loop: dict[int, Ids] = {}
    for label in labels:
        units = units_of[label]
        if label.size != max(label.shape):
            units = collapse(units)
        elif (units == units.flat[0]).all():
            continue
        dims = varying(units)
        if len(dims) > 1:
            raise AssertionError(f"{module}: a unit spans several loops of one product, expected one")
        if dims:  # both factors label the summed loop, with the same units
            by_loop[dims[0]] = np.ravel(units)
    constant = math.prod(size for loop, size in enumerate(sizes) if loop not in by_loop)
    return LoopNest(module, constant, tuple(by_loop.values()))


def parameter_nest(name: str, shape: Shape, axes: Mapping[int, Ids]) -> LoopNest:
    constant = math.prod(size for dim, size in enumerate(shape) if dim not in axes)
    return LoopNest(name.rpartition(".")[0], constant, tuple(axes[dim] for dim in sorted(axes)))
