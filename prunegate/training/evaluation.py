"""Measuring a classifier."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from prunegate.modes import eval_mode
from prunegate.training.processes import Processes


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[torch.Tensor, ...]], processes: Processes | None = None
) -> float:
    """Top-1 accuracy in [0, 1]; the model's mode is as before afterwards.

    Args:
        batches: (inputs, class indices), and what else there is.
        processes: Given, each of them has a part of the batches, and all get the accuracy on the whole.
    """
    device = next(iter(model.parameters())).device
    # Counted on the device and read once: reading a batch's count would make the next one wait for it.
    hits, count = torch.zeros((), dtype=torch.int64, device=device), 0
    with eval_mode(model):
        for inputs, labels, *_ in batches:
            predicted = model(inputs.to(device, non_blocking=True)).argmax(dim=1)
            hits += (predicted == labels.to(device, non_blocking=True)).sum()
            count += len(labels)
    correct = int(hits)
    if processes is not None:
        correct, count = (int(sum(parts)) for parts in processes.gathered(correct, count))
    return correct / max(count, 1)
