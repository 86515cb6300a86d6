"""Measuring how long a forward takes, several models side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Latency:
    """Time of one forward in milliseconds: median and interquartile range over the repetitions."""

    batch_size: int
    median_ms: float
    spread_ms: float

    def __str__(self) -> str:
        return f"{self.median_ms:.2f} ± {self.spread_ms / 2:.2f} ms"


@torch.no_grad()
def measure_latency(
    models: Sequence[nn.Module],
    shape: Sequence[int],
    batch_size: int,
    seconds: float = 1.5,
    least_repetitions: int = 15,
) -> list[Latency]:
    """Time the models in turn, so that whatever else the machine does falls on all of them alike.

    Args:
        shape: Shape of one sample.
        seconds: About how long to measure in all.
    """
    device = next(iter(models[0].parameters())).device
    x = torch.randn(batch_size, *shape, device=device)
    modes = [model.training for model in models]
    times: list[list[float]] = [[] for _ in models]
    for model in models:
        model.eval()
        for _ in range(3):
            model(x)
    began = time.perf_counter()
    while len(times[0]) < least_repetitions or time.perf_counter() - began < seconds:
        for model, found in zip(models, times, strict=True):
            start = time.perf_counter()
            model(x)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            found.append((time.perf_counter() - start) * 1e3)
        if len(times[0]) >= 1000:
            break
    for model, mode in zip(models, modes, strict=True):
        model.train(mode)
    quartiles = [np.percentile(found, [25, 50, 75]) for found in times]
    return [Latency(batch_size, float(q[1]), float(q[2] - q[0])) for q in quartiles]
