"""Copies to the training device without synchronisation."""

from __future__ import annotations

import torch

CPU = torch.device("cpu")
# The share of a device's free memory that a data set may use.
_SHARE_OF_FREE = 1 / 3


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on ``device``, or the tensor itself if it is already there.

    CUDA copies asynchronously only from pinned memory.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = _pinned(tensor)
    return tensor.to(device, non_blocking=True)


def fits(tensors: tuple[torch.Tensor, ...], device: torch.device) -> bool:
    """Whether tensors may be kept on a device: they take at most a third of its free memory."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) <= _SHARE_OF_FREE * free


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.pin_memory()
