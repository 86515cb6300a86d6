"""Measuring how long a forward takes, several models side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

# The largest share of the median that the interquartile range of steady times has.
STEADY_SPREAD = 0.2
# Times that are not steady are taken for so many times as long before they are handed out.
_PATIENCE = 3
_MOST_REPETITIONS = 1000


@dataclass(frozen=True)
class Latency:
    """Time of one forward in milliseconds: median and interquartile range over the repetitions."""

    batch_size: int
    median_ms: float
    spread_ms: float

    @property
    def is_steady(self) -> bool:
        """Whether the spread is small enough, 20% of the median at most, for the median to mean something."""
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
    """Time the models in turn, so that whatever else the machine does falls on all of them alike.

    Args:
        shape: Shape of one sample.
        seconds: About how long to measure in all; up to three times that where times are not steady.

    Returns:
        One latency for each model, in their order. `Latency.is_steady` says whether to trust it.
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
            for model, result in zip(models, times, strict=True):
                start = time.perf_counter()
                model(x)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                result.append((time.perf_counter() - start) * 1e3)
            if len(times[0]) >= _MOST_REPETITIONS:
                break
        latencies = [_latency(batch_size, result) for result in times]
        if all(latency.is_steady for latency in latencies) or len(times[0]) >= _MOST_REPETITIONS:
            break
    for model, mode in zip(models, modes, strict=True):
        model.train(mode)
    return latencies


def _latency(batch_size: int, times: Sequence[float]) -> Latency:
    low, median, high = np.percentile(times, [25, 50, 75])
    return Latency(batch_size, float(median), float(high - low))
