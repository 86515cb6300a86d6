"""What is measured on every result, whoever made it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from accuracy.tasks import Task, data_of, example
from prunegate.training import evaluate


def macs_of(model: nn.Module, task: Task) -> int:
    """MACs per sample by torch's own counter, on the model as it stands."""
    mode = model.training
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.eval()(example(task))
    model.train(mode)
    return int(counter.get_total_flops()) // 2 // len(example(task))


def accuracy_of(model: nn.Module, task: Task) -> float:
    """Share of the test images that are told right, in eval mode."""
    return evaluate(model, data_of(task.name).test_batches())
