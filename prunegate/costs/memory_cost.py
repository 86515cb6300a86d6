"""Memory as a cost: the weights, and the most that tensors take at once during a forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from prunegate.costs.loop_nests import CostModel
from prunegate.groups import LoopNest
from prunegate.groups.solving.allocations import TensorOfRun

_MEGABYTE = 1e6


class MemoryCost:
    """Megabytes (10⁶ bytes) of weights and activations in one call, with the interface of `CostModel`.

    The peak of the activations is counted from the sizes of tensors and from how long the run refers to them, without
    the scratch memory of kernels. Results that code keeps in local variables after their last use are not counted
    further, so code written that way takes more than this says. The cost is not exactly additive over units; its
    gradient is that of the moment at which most is in use.

    Args:
        parameters: Loop nests of the parameters and buffers.
        allocations: The tensors of one run.
        num_units: Length of the keep vectors.
        batch_share: Batch size that counts, over that of the run.
        weight_bytes: Size of a weight.
    """

    def __init__(
        self,
        parameters: Sequence[LoopNest],
        allocations: Sequence[TensorOfRun],
        num_units: int,
        batch_share: float = 1.0,
        weight_bytes: int = 4,
    ) -> None:
        self.num_units = num_units
        self._weights = CostModel(parameters, num_units)
        self._weight_bytes, self._batch_share = weight_bytes, batch_share
        self._tensors = CostModel([allocation.nest for allocation in allocations], num_units)
        self._bytes = torch.tensor([allocation.entry_bytes for allocation in allocations], dtype=torch.float64)
        self._first = torch.tensor([allocation.first for allocation in allocations], dtype=torch.long)
        self._after = torch.tensor([allocation.last + 1 for allocation in allocations], dtype=torch.long)
        self._steps = int(self._after.max()) + 1 if len(allocations) else 1

    def exact(self, keep: npt.NDArray[np.bool_]) -> float:
        """The megabytes under hard masks, shape (units,)."""
        tensors = torch.from_numpy(self._tensors.by_nest(keep))
        return (self._weights.exact(keep) * self._weight_bytes + float(self._peak(tensors))) / _MEGABYTE

    def by_nest(self, keep: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """The megabytes of every tensor of the run under hard masks."""
        sizes: npt.NDArray[np.float64] = self._tensors.by_nest(keep) * self._bytes.numpy() * self._batch_share
        return sizes / _MEGABYTE

    def dense(self) -> float:
        """The megabytes with every unit kept."""
        return self.exact(np.ones(self.num_units, dtype=bool))

    def expected(self, keep_probability: torch.Tensor) -> torch.Tensor:
        """The megabytes at the expected sizes: 0-d tensor, differentiable."""
        weights = self._weights.expected(keep_probability) * self._weight_bytes
        return (weights + self._peak(self._tensors.expected_by_nest(keep_probability))) / _MEGABYTE

    def _peak(self, entries: torch.Tensor) -> torch.Tensor:
        """The most bytes in use at once, from the entries of every tensor."""
        sizes = entries * self._bytes.to(entries) * self._batch_share
        first, after = self._first.to(sizes.device), self._after.to(sizes.device)
        changes = sizes.new_zeros(self._steps).index_add(0, first, sizes).index_add(0, after, -sizes)
        return changes.cumsum(0).max()
