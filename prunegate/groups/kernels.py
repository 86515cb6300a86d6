"""Fused kernels of torch switched off, where what they compute at once has to be seen or masked by its parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


def has_fused_layers(model: nn.Module) -> bool:
    """Whether any layer of the model has a fused kernel for inference."""
    return any(isinstance(module, _FUSED) for module in model.modules())


@contextmanager
def unfused_layers() -> Iterator[None]:
    """Run torch's attention and encoder layers by their parts.

    Their fused kernels for inference read the weights of several layers at once and call none of them: no mask
    reaches a norm inside, and without data they check no shape.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def decomposed_attention() -> Iterator[None]:
    """Attention as matrix products and softmax instead of one fused operation."""
    with unfused_layers(), sdpa_kernel(SDPBackend.MATH):
        yield
