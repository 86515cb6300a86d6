"""Measuring the latency of a forward pass, for several models in turn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

# Times are steady if their interquartile range is at most this share of the median.
STEADY_SPREAD = 0.2
# Unsteady times are measured for up to this many times as long.
_PATIENCE = 3
_MOST_REPETITIONS = 1000


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass in milliseconds: median and interquartile range over the repetitions."""

    batch_size: int
    median_ms: float
    spread_ms: float

    @property
    def is_steady(self) -> bool:
        """Whether the spread is at most 20% of the median, so that the median is meaningful."""
        return self.spread_ms <= STEADY_SPREAD * self.median_ms

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
    """Time the models in turn, so that other load on the machine affects all of them alike.

    Args:
        shape: Shape of one sample.
        seconds: Approximate total time; up to three times that if times are not steady.

    Returns:
        One latency per model, in order. `Latency.is_steady` says whether to trust it.
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
    latencies: list[Latency] = []
    for until in (seconds * (round_ + 1) for round_ in range(_PATIENCE)):
        while len(times[0]) < least_repetitions or time.perf_counter() - began < until:
            for model, own_times in zip(models, times, strict=True):
                start = time.perf_counter()
                model(x)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                own_times.append((time.perf_counter() - start) * 1e3)
            if len(times[0]) >= _MOST_REPETITIONS:
                break
        latencies = [_latency(batch_size, own_times) for own_times in times]
        if all(latency.is_steady for latency in latencies) or len(times[0]) >= _MOST_REPETITIONS:
            break
    for model, mode in zip(models, modes, strict=True):
        model.train(mode)
    return latencies


def _latency(batch_size: int, times: Sequence[float]) -> Latency:
    low, median, high = np.percentile(times, [25, 50, 75])
    return Latency(batch_size, float(median), float(high - low))
