"""Timing calls in turn, so that other load on the machine affects all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

# Times are steady if their interquartile range is at most this share of the median.
STEADY_SPREAD = 0.2
# Unsteady times are measured for up to this many times as long.
_PATIENCE = 3

Call = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Timing:
    """Time of one call in milliseconds: the quartiles over ``samples`` measurements.

    Attributes:
        times_ms: The measurements, in order; the n-th ones of calls that took turns belong together.
    """

    low_ms: float
    median_ms: float
    high_ms: float
    samples: int
    times_ms: tuple[float, ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> Timing:
        low, median, high = np.percentile(times_ms, [25, 50, 75])
        return cls(float(low), float(median), float(high), len(times_ms), tuple(times_ms))

    @property
    def spread_ms(self) -> float:
        """The interquartile range."""
        return self.high_ms - self.low_ms

    @property
    def median_interval_ms(self) -> tuple[float, float]:
        """The 95% confidence interval of the median, from order statistics; the quartiles if times are unknown.

        It shrinks with more samples, where the interquartile range does not.
        """
        count = len(self.times_ms)
        if not count:
            return self.low_ms, self.high_ms
        ordered, reach = sorted(self.times_ms), 0.98 * math.sqrt(count)  # half of 1.96 standard deviations' ranks
        low, high = math.floor(count / 2 - reach), math.ceil(count / 2 + reach)
        return ordered[max(low, 0)], ordered[min(high, count - 1)]

    @property
    def is_steady(self) -> bool:
        """Whether the spread is at most 20% of the median, so that the median is meaningful."""
        return self.spread_ms <= STEADY_SPREAD * self.median_ms


@torch.no_grad()
def time_in_turn(
    calls: Sequence[Call],
    seconds: float = 1.5,
    *,
    device: torch.device | str = "cpu",
    least_samples: int = 15,
    most_samples: int = 1000,
    warm_up: int = 3,
    untimed: int = 0,
    calls_per_sample: int = 1,
    clock: Clock = time.perf_counter,
) -> list[Timing]:
    """Time calls in turn (A, B, C, A, B, C, ...), without gradients.

    Args:
        seconds: Approximate time for all calls together; up to three times that while times are not steady.
        device: Where the calls compute. On CUDA, events around a sample measure it: from its first launch until the
            device has finished.
        least_samples: Of each call, even if they take longer than ``seconds``.
        most_samples: Of each call, even if ``seconds`` are not over.
        warm_up: Calls of each before the first turn.
        untimed: Calls of each at the start of its turn. They refill the caches that the previous one has used, and
            outlast threads of its that still spin.
        calls_per_sample: Calls between two readings of the clock; for calls that are too short to be timed alone. On
            CUDA they are queued, so that launches hide behind the kernels, as inside a model.
        clock: Returns seconds since an arbitrary point in time.

    Returns:
        One timing per call, in order. `Timing.is_steady` says whether to trust it.
    """
    if not calls:
        return []
    place = torch.device(device)
    for call in calls:
        for _ in range(warm_up):
            call()
    times: list[list[float]] = [[] for _ in calls]
    began = clock()
    for round_ in range(1, _PATIENCE + 1):
        while len(times[0]) < most_samples and (len(times[0]) < least_samples or clock() - began < seconds * round_):
            for call, own_times in zip(calls, times, strict=True):
                for _ in range(untimed):
                    call()
                own_times.append(_sample_ms(call, calls_per_sample, place, clock))
        if len(times[0]) >= most_samples or all(Timing.of(own_times).is_steady for own_times in times):
            break
    return [Timing.of(own_times) for own_times in times]


def _sample_ms(call: Call, count: int, device: torch.device, clock: Clock) -> float:
    """The mean time of ``count`` calls in a row, in milliseconds."""
    if device.type == "cuda":
        return _cuda_sample_ms(call, count, device)
    start = clock()
    for _ in range(count):
        call()
    return (clock() - start) * 1e3 / count


def _cuda_sample_ms(call: Call, count: int, device: torch.device) -> float:
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()  # nothing queued before is counted
        start.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / count
