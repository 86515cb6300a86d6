from __future__ import annotations

import time

import torch
from torch import nn

from prunegate.report import Latency, measure_latency


class Sleeper(nn.Module):
    """Takes a known time and notes who was called, with what and in which mode."""

    def __init__(self, name: str, seconds: float, calls: list[tuple[str, tuple[int, ...], bool]]) -> None:
        super().__init__()
        self.name, self.seconds, self.calls = name, seconds, calls
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append((self.name, tuple(x.shape), self.training))
        time.sleep(self.seconds)
        return x


def test_median_is_the_time_a_forward_takes() -> None:
    calls: list[tuple[str, tuple[int, ...], bool]] = []
    slow, fast = measure_latency([Sleeper("slow", 0.02, calls), Sleeper("fast", 0.002, calls)], (3, 4), 7, seconds=0.3)
    # Sleeping never takes less than asked; the machine may add to it.
    assert slow.median_ms >= 20.0
    assert 2.0 <= fast.median_ms < slow.median_ms
    assert slow.spread_ms >= 0
    assert slow.batch_size == fast.batch_size == 7
    assert {shape for _, shape, _ in calls} == {(7, 3, 4)}


def test_models_take_turns_in_eval_mode_and_get_their_modes_back() -> None:
    calls: list[tuple[str, tuple[int, ...], bool]] = []
    models = [Sleeper("a", 0.0, calls).train(), Sleeper("b", 0.0, calls).eval()]
    measure_latency(models, (1,), 2, seconds=0.0, least_repetitions=10)
    assert not any(training for _, _, training in calls)
    timed = [name for name, _, _ in calls][-20:]
    assert timed == ["a", "b"] * 10
    assert [model.training for model in models] == [True, False]


class Unsteady(Sleeper):
    """Takes a long time at every other call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seconds = 0.001 if self.seconds > 0.001 else 0.01
        return super().forward(x)


def test_times_that_are_not_steady_are_taken_for_longer_and_told() -> None:
    calls: list[tuple[str, tuple[int, ...], bool]] = []
    began = time.perf_counter()
    (latency,) = measure_latency([Unsteady("a", 0.01, calls)], (1,), 2, seconds=0.2)
    assert not latency.is_steady
    assert time.perf_counter() - began >= 0.6


def test_a_spread_of_a_fifth_is_steady_and_more_is_not() -> None:
    assert Latency(1, 10.0, 2.0).is_steady
    assert not Latency(1, 10.0, 2.1).is_steady
