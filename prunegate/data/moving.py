"""Copies to the device that trains, for which nothing waits."""

from __future__ import annotations

import torch

CPU = torch.device("cpu")
# Of the memory that is free on a device, so much may be taken by a data set.
_SHARE_OF_FREE = 1 / 3


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on ``device``, or the very same if it is there.

    Only from pinned memory does CUDA copy while the program goes on; from other memory it first waits for the copy.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = _pinned(tensor)
    return tensor.to(device, non_blocking=True)


def fits(tensors: tuple[torch.Tensor, ...], device: torch.device) -> bool:
    """Whether tensors may stay on a device: they take at most a third of what is free there."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) <= _SHARE_OF_FREE * free


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.pin_memory()
