"""Which positions of a tensor a mask keeps, by the tensor's labels."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from prunegate.errors import CompactionError
from prunegate.groups.solving.labels import Labels, Shape, collapse, varying
from prunegate.groups.solving.partition import Ids

# For each dimension of a tensor, the kept positions; None if all are kept.
KeptByDim: TypeAlias = "tuple[npt.NDArray[np.bool_] | None, ...]"


def kept_positions(shape: Shape, labels: Labels, units_of: Ids, keep: npt.NDArray[np.bool_]) -> KeptByDim:
    """For each dimension of a tensor, the positions that remain, or None if all do.

    Args:
        units_of: The unit of each id in the labels, -1 for none.
        keep: Which units are kept, shape (units,).

    Raises:
        CompactionError: The units are not whole slices of the tensor.
    """
    result: list[npt.NDArray[np.bool_] | None] = [None] * len(shape)
    for label in labels:
        units = units_of[label]
        if (units < 0).all():
            continue
        stays = collapse(((units < 0) | keep[units]).astype(np.int64)).astype(bool)
        dims = varying(stays)
        if not stays.any():  # nothing is kept, whatever dimension its units are along
            dim = (varying(collapse(units)) or varying(label))[0]
            result[dim] = np.zeros(shape[dim], dtype=bool)
            continue
        if len(dims) > 1:
            raise CompactionError(
                "compaction: the units of a tensor of the run are not whole slices of it. This is a bug in "
                "prunegate's tracing. Please report the model."
            )
        for dim in dims:
            mask = stays.reshape(-1)
            before = result[dim]
            result[dim] = mask if before is None else mask & before
    return tuple(result)
