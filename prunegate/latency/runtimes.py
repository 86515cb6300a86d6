"""Calls of a model in each runtime, ready to be timed."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from prunegate.groups import ExampleInputs
from prunegate.latency.settings import LatencySettings
from prunegate.seeding import seeded


def at_batch_size(inputs: ExampleInputs, count: int) -> ExampleInputs:
    """The example call with ``count`` samples: its own, repeated if there are too few."""
    inputs = inputs.alone()
    batch = inputs.batch_size()
    if count == batch:
        return inputs
    return inputs.map(
        lambda t: t[torch.arange(count, device=t.device) % batch] if t.dim() > 0 and t.shape[0] == batch else t
    )


def call_of(
    model: nn.Module, inputs: ExampleInputs, settings: LatencySettings, device: torch.device
) -> Callable[[], object]:
    """A call of the model on one batch, as the settings describe it. The model is converted in place."""
    model = model.eval().requires_grad_(False).to(device=device, dtype=settings.dtype)
    inputs = at_batch_size(inputs, settings.batch_size).map(
        lambda t: t.to(device, settings.dtype if t.is_floating_point() else None)
    )
    if settings.runtime == "compiled":
        compiled = torch.compile(model)
        return lambda: compiled(*inputs.args, **inputs.kwargs)
    return lambda: model(*inputs.args, **inputs.kwargs)


def converted_copy(model: nn.Module) -> nn.Module:
    """A copy to convert, as `call_of` changes its model."""
    return copy.deepcopy(model)


def clock_of(device: torch.device, num_threads: int) -> Callable[[], float]:
    """The clock for calls on a device, in seconds.

    A single thread on the CPU is timed by its own clock, which stands still while other programs run.
    """
    return time.thread_time if device.type == "cpu" and num_threads == 1 else time.perf_counter


@contextmanager
def conditions(num_threads: int) -> Iterator[None]:
    """Compute with this many threads, and round numbers below the smallest normal one to zero.

    Processors handle such numbers many times more slowly, and models with random weights are full of them: half the
    time of a fresh MobileNetV2 is theirs.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    flushes = torch.set_flush_denormal(True)
    try:
        with seeded(0):  # a model's own random draws are not a run's
            yield
    finally:
        torch.set_num_threads(before)
        if flushes:
            torch.set_flush_denormal(False)
