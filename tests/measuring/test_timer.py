"""Calls are timed in turn; a clock of our own says how long each takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from itertools import cycle

import pytest
import torch

from prunegate.measuring import Timing, time_in_turn


class Machine:
    """A machine on which time passes only in calls, which are noted."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def clock(self) -> float:
        return self.now

    def call(self, name: str, seconds: Iterable[float]) -> Callable[[], None]:
        durations = cycle(seconds)

        def run() -> None:
            self.calls.append(name)
            self.now += next(durations)

        return run


def test_calls_take_turns_after_a_warm_up() -> None:
    machine = Machine()
    calls = [machine.call(name, [1.0]) for name in "abc"]
    time_in_turn(calls, 0.0, least_samples=4, warm_up=2, clock=machine.clock)
    assert "".join(machine.calls) == "aabbcc" + 4 * "abc"


def test_untimed_calls_begin_each_turn_and_do_not_count() -> None:
    machine = Machine()
    calls = [machine.call("a", [9.0, 1.0]), machine.call("b", [7.0, 2.0])]
    a, b = time_in_turn(calls, 0.0, least_samples=3, warm_up=0, untimed=1, clock=machine.clock)
    assert "".join(machine.calls) == 3 * "aabb"
    assert [a.median_ms, b.median_ms] == pytest.approx([1000.0, 2000.0])


def test_a_sample_of_several_calls_is_their_mean() -> None:
    machine = Machine()
    (timing,) = time_in_turn(
        [machine.call("a", [1.0, 2.0])], 0.0, least_samples=3, warm_up=0, calls_per_sample=2, clock=machine.clock
    )
    assert timing == Timing(1500.0, 1500.0, 1500.0, 3)


def test_load_on_the_machine_hits_all_calls_alike() -> None:
    machine = Machine()
    slow = [1.0] * 10 + [3.0] * 10  # from the tenth turn on, everything takes three times as long
    a, b = time_in_turn(
        [machine.call("a", slow), machine.call("b", [2 * s for s in slow])],
        0.0,
        least_samples=20,
        most_samples=20,
        warm_up=0,
        clock=machine.clock,
    )
    assert b.median_ms / a.median_ms == pytest.approx(2.0)
    assert not a.is_steady
    assert not b.is_steady


def test_unsteady_calls_are_timed_three_times_as_long() -> None:
    for durations, samples in (([0.1], 10), ([0.05, 0.15], 30)):
        machine = Machine()
        (timing,) = time_in_turn(
            [machine.call("a", durations)], 1.0 - 1e-9, least_samples=2, warm_up=0, clock=machine.clock
        )
        assert timing.samples == pytest.approx(samples, abs=1)
        assert timing.is_steady == (samples == 10)


def test_most_samples_ends_the_measurement() -> None:
    machine = Machine()
    (timing,) = time_in_turn([machine.call("a", [0.001])], 1.0, most_samples=20, warm_up=0, clock=machine.clock)
    assert timing.samples == 20


def test_a_spread_of_a_fifth_is_steady_and_more_is_not() -> None:
    assert Timing(9.0, 10.0, 11.0, 15).is_steady
    assert not Timing(9.0, 10.0, 11.1, 15).is_steady


def test_the_median_is_known_better_with_more_samples() -> None:
    few, many = Timing.of([1.0, 2.0, 3.0, 4.0, 5.0]), Timing.of([1.0, 2.0, 3.0, 4.0, 5.0] * 40)
    assert few.median_interval_ms == (1.0, 5.0)
    assert many.median_interval_ms == (3.0, 3.0)
    assert few.spread_ms == many.spread_ms
    assert Timing(9.0, 10.0, 11.0, 15).median_interval_ms == (9.0, 11.0)


def test_nothing_to_time_gives_nothing_and_gradients_are_off() -> None:
    assert time_in_turn([]) == []
    modes: list[bool] = []
    time_in_turn([lambda: modes.append(torch.is_grad_enabled())], 0.0, least_samples=1)
    assert not any(modes)


class Event:
    """As `torch.cuda.Event`, on a machine of our own."""

    machine: Machine

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.machine.calls.append("record")
        self.at = self.machine.now

    def synchronize(self) -> None:
        self.machine.calls.append("wait")

    def elapsed_time(self, end: Event) -> float:
        return (end.at - self.at) * 1e3


def test_events_measure_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    monkeypatch.setattr(Event, "machine", machine, raising=False)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: machine.calls.append("idle"))
    (timing,) = time_in_turn(
        [machine.call("a", [2.0])], 0.0, device="cuda", least_samples=1, warm_up=1, calls_per_sample=2,
        clock=machine.clock,
    )  # fmt: skip
    assert machine.calls == ["a", "idle", "record", "a", "a", "record", "wait"]
    assert timing == Timing(2000.0, 2000.0, 2000.0, 1)
