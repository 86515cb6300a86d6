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

from prunegate.costs.axes import Axes
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
        axes = Axes()
        by_nest = [[axes.number(axis) for axis in nest.axes] for nest in nests]
        width = max((len(row) for row in by_nest), default=0)
        self._constants = np.array([nest.constant for nest in nests], dtype=np.int64)
        self._factors = np.array([row + [0] * (width - len(row)) for row in by_nest], dtype=np.int64)
        self._factors = self._factors.reshape(len(nests), width)
        self._fixed, self._axis, self._unit, self._count = axes.fixed, axes.owner, axes.unit, axes.count
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
