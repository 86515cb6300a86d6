"""Evaluating a model on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from prunegate.modes import eval_mode
from prunegate.training.labels import labels_to
from prunegate.training.processes import Processes

Metric = Callable[[Any, Any], Any]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Any, ...]],
    processes: Processes | None = None,
    metric: Metric | None = None,
) -> float:
    """Top-1 accuracy in [0, 1], or the mean of a metric; the model's mode is restored afterwards.

    Args:
        batches: (inputs, class indices, ...).
        processes: If given, each process has a part of the batches, and all get the result for the whole.
        metric: Maps the (outputs, labels) of a batch to a number; the mean weights batches by their samples.
    """
    if metric is not None:
        return _mean(model, batches, processes, metric)
    device = next(iter(model.parameters())).device
    # Counted on the device and read once: reading it for every batch would synchronise each time.
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


def _mean(model: nn.Module, batches: Iterable[tuple[Any, ...]], processes: Processes | None, metric: Metric) -> float:
    device = next(iter(model.parameters())).device
    total, count = torch.zeros((), dtype=torch.float64), 0
    with eval_mode(model):
        for inputs, labels, *_ in batches:
            result = metric(model(inputs.to(device, non_blocking=True)), labels_to(labels, device))
            total += len(inputs) * float(result)
            count += len(inputs)
    if processes is None:
        return float(total) / max(count, 1)
    totals, counts = processes.gathered(float(total), count)
    return sum(totals) / max(sum(counts), 1)
