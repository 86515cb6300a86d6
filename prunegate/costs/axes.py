"""Distinct axes of operations, and how many positions of each a mask keeps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


class Axes:
    """Axes by number; number 0 is a constant 1, for operations with fewer axes than others.

    Attributes:
        fixed: For each axis, the positions without a unit.
        owner, unit, count: For each pair of an axis and one of its units: the axis, the unit, and how many of the
            axis's positions it has.
    """

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._fixed, self._units, self._counts = [1], [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]

    def number(self, axis: Ids) -> int:
        """The number of an axis, given as the unit at each position, -1 for none."""
        key = axis.tobytes()
        if key not in self._numbers:
            self._numbers[key] = len(self._fixed)
            present, count = np.unique(axis[axis >= 0], return_counts=True)
            self._units.append(present)
            self._counts.append(count)
            self._fixed.append(int((axis < 0).sum()))
        return self._numbers[key]

    @property
    def fixed(self) -> Ids:
        return np.array(self._fixed, dtype=np.int64)

    @property
    def owner(self) -> Ids:
        return np.repeat(np.arange(len(self._fixed)), [len(units) for units in self._units])

    @property
    def unit(self) -> Ids:
        return np.concatenate(self._units)

    @property
    def count(self) -> Ids:
        return np.concatenate(self._counts)
