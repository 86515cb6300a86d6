"""Costs that are sums of products of sizes, such as MACs and parameter counts.

A loop nest costs ``constant × Π over its axes of (number of kept positions)``. With keep probabilities instead of
masks, each factor becomes its expectation, and the sum of products is differentiable. If one channel group determines
two axes of one nest, the product of the expectations is not exactly the expectation of the product (it lacks the
covariance, which vanishes as probabilities approach 0 or 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from prunegate.groups import LoopNest


class CostModel:
    """One cost of one model, evaluated for all its operations at once.

    Args:
        nests: The operations' loop nests.
        num_units: Length of the keep vectors.
        divisor: Divisor of the totals: the batch size for a cost per sample.
    """

    def __init__(self, nests: Sequence[LoopNest], num_units: int, divisor: int = 1) -> None:
        self.num_units = num_units
        self._divisor = divisor
        numbers: dict[bytes, int] = {}
        units: list[npt.NDArray[np.int64]] = []
        counts: list[npt.NDArray[np.int64]] = []
        fixed: list[int] = [1]  # the first axis is a constant 1, which pads nests with fewer axes
        by_nest: list[list[int]] = []
        for nest in nests:
            row = []
            for axis in nest.axes:
                key = axis.tobytes()
                if key not in numbers:
                    numbers[key] = len(fixed)
                    present, count = np.unique(axis[axis >= 0], return_counts=True)
                    units.append(present)
                    counts.append(count)
                    fixed.append(int((axis < 0).sum()))
                row.append(numbers[key])
            by_nest.append(row)
        width = max((len(row) for row in by_nest), default=0)
        lengths = [0, *(len(u) for u in units)]
        empty = np.zeros(0, dtype=np.int64)
        self._constants = np.array([nest.constant for nest in nests], dtype=np.int64)
        self._factors = np.array([row + [0] * (width - len(row)) for row in by_nest], dtype=np.int64)
        self._factors = self._factors.reshape(len(nests), width)
        self._fixed = np.array(fixed, dtype=np.int64)
        self._axis = np.repeat(np.arange(len(fixed)), lengths)
        self._unit = np.concatenate([*units, empty])
        self._count = np.concatenate([*counts, empty])
        self._tensors: dict[tuple[torch.device, torch.dtype], tuple[torch.Tensor, ...]] = {}

    def exact(self, keep: npt.NDArray[np.bool_]) -> int:
        """The cost under hard masks, shape (units,), as an exact integer."""
        kept = np.bincount(self._axis, weights=self._count * keep[self._unit], minlength=len(self._fixed))
        sizes = self._fixed + kept.astype(np.int64)
        return int((self._constants * sizes[self._factors].prod(axis=1)).sum()) // self._divisor

    def by_nest(self, keep: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """The cost of every nest under hard masks, shape (nests,)."""
        kept = np.bincount(self._axis, weights=self._count * keep[self._unit], minlength=len(self._fixed))
        sizes = self._fixed + kept.astype(np.int64)
        total: npt.NDArray[np.float64] = self._constants * sizes[self._factors].prod(axis=1) / self._divisor
        return total

    def dense(self) -> int:
        """The cost with every unit kept."""
        return self.exact(np.ones(self.num_units, dtype=bool))

    def expected(self, keep_probability: torch.Tensor) -> torch.Tensor:
        """The cost with keep probabilities instead of masks.

        Args:
            keep_probability: Shape (units,), in [0, 1].

        Returns:
            0-d tensor, float64 (float32 if the device has no float64), differentiable.
        """
        return self.expected_by_nest(keep_probability).sum() / self._divisor

    def expected_by_nest(self, keep_probability: torch.Tensor) -> torch.Tensor:
        """The expected cost of every nest, shape (nests,), before division."""
        dtype = torch.float32 if keep_probability.device.type == "mps" else torch.float64
        constants, factors, fixed, axis, unit, count = self._on(keep_probability.device, dtype)
        kept = keep_probability.to(dtype)[unit] * count
        sizes = fixed.index_add(0, axis, kept)
        cost = constants
        for column in factors.unbind(1):
            cost = cost * sizes[column]
        return cost

    def _on(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        key = (device, dtype)
        if key not in self._tensors:
            real = [torch.as_tensor(a, dtype=dtype, device=device) for a in (self._constants, self._fixed, self._count)]
            index = [torch.as_tensor(a, device=device) for a in (self._factors, self._axis, self._unit)]
            self._tensors[key] = (real[0], index[0], real[1], index[1], index[2], real[2])
        return self._tensors[key]
