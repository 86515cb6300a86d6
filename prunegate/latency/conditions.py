"""The clock, and the state of the process while models are timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from prunegate.seeding import seeded


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
