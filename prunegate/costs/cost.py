"""What every cost can tell about masks."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

# Budgets and costs are named by these: MACs per sample, parameters, milliseconds and megabytes per call.
METRICS = ("macs", "params", "latency_ms", "memory_mb")
# The costs that are whole numbers.
COUNTS = ("macs", "params")


def amount(value: float, metric: str) -> str:
    """A cost as text: whole numbers with commas, milliseconds and megabytes with three figures."""
    return f"{int(value):,}" if metric in COUNTS else f"{value:.3g}"


class Cost(Protocol):
    """A cost as a function of the units that are kept, which grows with them."""

    def exact(self, keep: npt.NDArray[np.bool_]) -> float:
        """The cost under hard masks, shape (units,)."""
        ...

    def expected(self, keep_probability: torch.Tensor) -> torch.Tensor:
        """The cost with keep probabilities instead of masks: 0-d tensor, differentiable."""
        ...

    def dense(self) -> float:
        """The cost with every unit kept."""
        ...

    def by_nest(self, keep: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """The cost of every operation under hard masks."""
        ...
