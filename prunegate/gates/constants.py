"""Constant tensors, created from arrays on demand instead of being buffers.

Code that copies, averages, empties or loads buffers would do the same to index tables, and masks would be applied to
the wrong channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch


class Constants:
    """Arrays by name, as tensors on any device."""

    def __init__(self, **arrays: npt.NDArray[Any]) -> None:
        self._arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        self._tensors: dict[torch.device, dict[str, torch.Tensor]] = {}

    def at(self, device: torch.device) -> dict[str, torch.Tensor]:
        """All of them on a device, created at the first call."""
        results = self._tensors.get(device)
        if results is None:
            with torch.inference_mode(False):
                results = {name: torch.from_numpy(array).to(device) for name, array in self._arrays.items()}
            self._tensors[device] = results
        return results

    def __getstate__(self) -> dict[str, Any]:
        return {"_arrays": self._arrays, "_tensors": {}}
