"""Triton kernels that do for all gates of a model at once what torch's operations do one by one."""

from __future__ import annotations

import importlib.util
import os

import torch

_HAS_TRITON = importlib.util.find_spec("triton") is not None


def serve(device: torch.device) -> bool:
    """Whether the kernels run on a device: on CUDA where Triton is installed, or anywhere under its interpreter.

    A step that is being captured in a CUDA graph does without: addresses are handed over from the host in each step.
    """
    if not _HAS_TRITON:
        return False
    if device.type == "cuda":
        return not torch.cuda.is_current_stream_capturing()
    return device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
