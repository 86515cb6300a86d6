"""Measuring the latency of a forward pass, for several models in turn."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from prunegate.measuring import STEADY_SPREAD, time_in_turn
from prunegate.modes import eval_mode


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
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(eval_mode(model))
        timings = time_in_turn(
            [partial(model, x) for model in models], seconds, device=device, least_samples=least_repetitions
        )
    return [Latency(batch_size, timing.median_ms, timing.spread_ms) for timing in timings]
