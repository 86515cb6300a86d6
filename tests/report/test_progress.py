"""Speed, time left, and a line of them for terminals of any width."""

from __future__ import annotations

from typing import Any

import pytest

from prunegate.report.live_line import live_line
from prunegate.report.progress import Progress, duration

GATE = {
    "stage": "gate",
    "epoch": 2,
    "loss": 0.05,
    "accuracy": 0.975,
    "tau": 1.25,
    "expected_macs": 612.0,
    "realised_macs": 750,
}


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def measured(stage: str = "gate", epochs: int = 12, later: int = 5) -> Progress:
    """Two epochs of ten steps of 32 samples: a second each, tests of ten seconds, and half of a third epoch."""
    clock = Clock()
    progress = Progress(stage, epochs, later, clock)
    for step in range(1, 26):
        clock.now += 1.0
        progress.step(step / 10, 0.5, 32)
        if step % 10 == 0:
            clock.now += 10.0
            progress.epoch(step // 10, 0.25)
    return progress


def test_speed_is_of_training_alone_and_time_left_counts_tests_and_later_stages() -> None:
    progress = measured()
    assert progress.samples_per_second == pytest.approx(32.0)
    # From the first step on: 24 s of training and 20 s of tests for 2.4 epochs.
    assert progress.seconds_left == pytest.approx(44 / 2.4 * (12 - 2.5 + 5))
    assert progress.loss == pytest.approx(0.5)  # of the present epoch
    assert progress.seconds == pytest.approx(40.0)


def test_nothing_is_told_before_it_is_known() -> None:
    progress = Progress("dense", 3)
    assert (progress.loss, progress.samples_per_second, progress.seconds_left) == (None, None, None)
    assert "loss ...  left ..." in live_line(progress, 80)


def test_a_resumed_stage_is_timed_from_where_it_goes_on() -> None:
    clock = Clock()
    progress = Progress("gate", 10, 0, clock)
    for done in (8.1, 8.2, 8.3):
        clock.now += 1.0
        progress.step(done, None, 32)
    assert progress.seconds_left == pytest.approx(17.0)


@pytest.mark.parametrize("record", [None, GATE])
@pytest.mark.parametrize("stage", ["gate", "finetune"])
@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 120, 200])
def test_a_line_fits_its_terminal(width: int, stage: str, record: dict[str, Any] | None) -> None:
    line = live_line(measured(stage, 12), width, record, 1000, "accuracy")
    assert len(line) <= width
    assert f"{stage} 2/12" in line
    for least, parts in (
        (30, ["left 4:26"]),
        (60, ["loss 0.5000", "32", "/s", "━"]),
        (80, ["32 samples/s"]),
        (120, [] if record is None else ["accuracy 97.50%", "tau 1.25"]),
        (200, [] if record is None else ["MACs 0.612 expected, 0.750 realised"]),
    ):
        for part in parts if width >= least else ():
            assert part in line, line


def test_a_gate_stage_shows_its_costs_at_120_columns() -> None:
    line = live_line(measured(), 119, GATE, 1000, "accuracy")
    assert line.endswith("left 4:26  accuracy 97.50%  tau 1.25  MACs 0.612 expected, 0.750 realised"), line


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (42, "0:42"), (725, "12:05"), (11045, "3:04:05"), (183_600, "2 d 3 h")]
)
def test_durations_are_read_at_a_glance(seconds: float, text: str) -> None:
    assert duration(seconds) == text
