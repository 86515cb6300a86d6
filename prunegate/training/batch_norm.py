"""Re-estimating BatchNorm statistics after hardening.

While gates are drawn, the running averages mix those of many subnetworks; the hardened one needs its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunegate.errors import LoopError
from prunegate.modes import eval_mode
from prunegate.training.model_calls import ModelCalls, batches_of, none_found


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Iterable[Any]) -> int:
    """Replace all running means and variances by plain averages over ``batches``.

    The model's train or eval mode is restored afterwards. Only BatchNorm layers run in training mode, so dropout and
    drawn masks do not disturb the averages. Batches with NaN or infinite values are skipped, as a single NaN would make
    every average NaN. On any error the statistics are left unchanged.

    Args:
        model: A gated model, or any other.
        batches: Whatever a loader yields: inputs, (inputs, labels, ...), or dicts with the names of ``forward``'s
            arguments. Tensors are moved to the model's device.

    Returns:
        The number of batches used; 0 if the model has no BatchNorm with running statistics.

    Raises:
        LoopError: There is no batch, no batch is finite, or the model cannot be called with a batch.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return 0
    calls, given = ModelCalls(model), batches_of(batches)
    first = next(given, None)  # before anything is changed
    if first is None:
        raise none_found(batches)
    used = 0
    with eval_mode(model), _averaging(norms):
        for number, batch in enumerate(itertools.chain([first], given), start=1):
            call = calls.of(batch)
            # This synchronises with the device, and so does each of torch's BatchNorms with cumulative averages.
            if call.is_finite():
                calls.run(call, number)
                used += 1
        if not used:
            raise LoopError(
                f"batches: none of {number} batches is finite, expected at least one. The statistics were not changed. "
                "Look for NaN and infinite values in the data."
            )
    return used


@contextmanager
def _averaging(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Let the layers average from scratch within the block; restore them after an error."""
    momenta = [norm.momentum for norm in norms]
    before = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.train()
        yield
    except BaseException:
        for buffer, value in before:
            buffer.copy_(value)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
