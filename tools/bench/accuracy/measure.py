"""What is measured on every result, whoever made it."""

from __future__ import annotations

from torch import nn

from accuracy.tasks import Task, data_of
from prunegate.report import counted_macs
from prunegate.training import evaluate


def macs_of(model: nn.Module, task: Task) -> int:
    """MACs per sample by torch's own counter, on the model as it stands."""
    return counted_macs(model, data_of(task.name).shape)


def accuracy_of(model: nn.Module, task: Task) -> float:
    """Share of the test images that are told right, in eval mode."""
    return evaluate(model, data_of(task.name).test_batches())
