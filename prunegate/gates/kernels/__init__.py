"""Triton kernels that process all gates of a model at once."""

from __future__ import annotations

import importlib.util
import os

import torch

_HAS_TRITON = importlib.util.find_spec("triton") is not None


def serve(device: torch.device) -> bool:
    """Whether the kernels run on a device: on CUDA where Triton is installed, or anywhere under its interpreter.

    Not while a step is captured in a CUDA graph, as the host passes addresses in each step.
    """
    if not _HAS_TRITON:
        return False
    if device.type == "cuda":
        return not torch.cuda.is_current_stream_capturing()
    return device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
