"""Layers of torch that have a fused kernel for inference, which no mask reaches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Run torch's attention and encoder layers by their parts, where a model has any.

    Their fused kernels read the weights of several layers at once and call none of them, so that norms would
    take their statistics over removed units too.
    """
    fused = torch.backends.mha.get_fastpath_enabled() and any(isinstance(m, _FUSED) for m in model.modules())
    if not fused:
        yield
        return
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
