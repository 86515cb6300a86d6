from __future__ import annotations

import io
import sys
import time
from typing import Any

import pytest
from rich.console import Console

from prunegate.report import Comparison, Latency, ModelFigures, RunStart
from prunegate.report.console import ConsoleListener

GATE = {
    "stage": "gate",
    "epoch": 3,
    "loss": 0.05,
    "accuracy": 0.975,
    "tau": 1.25,
    "expected_macs": 612.0,
    "realised_macs": 750,
}
DENSE = {"stage": "dense", "epoch": 1, "loss": 1.5, "accuracy": 0.5, "tau": None, "expected_macs": None}


def show(terminal: bool, folder: str = "runs/x", width: int = 80) -> str:
    out = io.StringIO()
    listener = ConsoleListener(Console(file=out, force_terminal=terminal, width=width, color_system=None))
    figures = ModelFigures(0.9, 1000, 50, 400, (Latency(1, 2.0, 0.5),))
    certificate: dict[str, Any] = {
        "float64": {"max_abs": 1e-15, "max_rel": 2e-16},
        "float32": {"max_abs": 3e-6, "max_rel": 4e-7},
    }
    listener.stage_started("dense", 1)
    listener.epoch_ended(DENSE, 1000)
    listener.stage_started("gate", 4)
    listener.epoch_ended(GATE, 1000)
    listener.note("harden: done")
    listener.finished(Comparison(figures, figures), certificate, folder)
    listener.close()
    return out.getvalue()


def test_elsewhere_than_on_a_terminal_every_epoch_is_one_line() -> None:
    text = show(terminal=False)
    assert "\x1b" not in text
    (gate,) = [line for line in text.splitlines() if line.startswith("gate")]
    for part in ("epoch   3", "loss 0.0500", "accuracy 97.50%", "tau 1.25", "expected 0.612", "realised 0.750"):
        assert part in gate
    (dense,) = [line for line in text.splitlines() if line.startswith("dense  ")]
    assert "accuracy 50.00%" in dense
    assert "tau" not in dense


@pytest.mark.parametrize("width", [80, 140])
def test_a_terminal_shows_the_gates_live(width: int) -> None:
    text = show(terminal=True, width=width)
    for part in ("97.50%", "1.25", "0.612", "0.750", "3/4"):
        assert part in text


@pytest.mark.parametrize("terminal", [False, True])
def test_result_and_certificate_come_last(terminal: bool) -> None:
    text = show(terminal)
    assert text.index("harden: done") < text.index("MACs per sample") < text.index("certificate, float64")
    assert "1.0e-15" in text
    assert "4.0e-07" in text


def test_folder_is_shown_as_it_is() -> None:
    # Square brackets are rich's markup.
    assert "runs/[bold]x/" in show(terminal=False, folder="runs/[bold]x")


HEAD = RunStart("prunegate: x", (("model", "a [red] model"), ("device", "cpu, 1 thread")), (("dense", 1), ("gate", 4)))


def listening(terminal: bool, width: int = 80, silence: float = 30.0) -> tuple[ConsoleListener, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, color_system=None)
    return ConsoleListener(console, silence=silence), out


@pytest.mark.parametrize("terminal", [False, True])
def test_the_head_comes_first_and_once(terminal: bool) -> None:
    listener, out = listening(terminal)
    listener.run_started(HEAD)
    text = out.getvalue()
    assert text.startswith("prunegate: x")
    for part in ("a [red] model", "cpu, 1 thread"):
        assert text.count(part) == 1


def test_a_log_has_a_line_when_it_would_be_silent_for_long() -> None:
    listener, out = listening(terminal=False, silence=1.05)
    listener.run_started(HEAD)
    listener.stage_started("dense", 4)
    listener.step_ended(1.25, 0.5, 32)
    end = time.monotonic() + 20.0
    while "25% of it" not in out.getvalue() and time.monotonic() < end:
        time.sleep(0.02)
    listener.close()
    assert "dense     epoch   2, 25% of it  loss 0.5000" in out.getvalue()
    told = out.getvalue()
    time.sleep(0.3)
    assert out.getvalue() == told  # nothing comes after the end


def test_a_log_says_speed_and_time_left() -> None:
    listener, out = listening(terminal=False)
    listener.run_started(HEAD)
    listener.stage_started("gate", 4)
    for step in (1, 2, 3):
        time.sleep(0.01)
        listener.step_ended(step, 0.5, 32)
    listener.epoch_ended(GATE, 1000)
    listener.close()
    (line,) = [line for line in out.getvalue().splitlines() if line.startswith("gate  ")]
    assert "samples/s" in line
    assert "left 0:0" in line


@pytest.mark.parametrize("width", [60, 80, 120])
def test_warnings_appear_above_the_live_line(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    listener, out = listening(terminal=True, width=width)
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # what rich stands in for meanwhile
    listener.stage_started("gate", 4)
    listener.step_ended(1.5, 0.5, 32)
    sys.stderr.write("warning: gates: look here\n")
    assert "warning: gates: look here\n" in out.getvalue()
    listener.close()
    sys.stderr.write("later")
    assert "later" not in out.getvalue()
    assert out.getvalue().count("look here") == 1


def test_on_a_terminal_a_stage_leaves_one_line() -> None:
    text = show(terminal=True, width=200)
    kept = [line for line in text.splitlines() if "epochs in" in line]
    assert len(kept) == 2
    assert "gate      3/4 epochs in 0:00  loss 0.0500  accuracy 97.50%  tau 1.25" in kept[1]


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    text = show(terminal=True)
    assert "\x1b" not in text
    assert "gate      epoch   3  loss 0.0500" in text


def test_a_log_says_between_stages_that_the_run_is_alive() -> None:
    listener, out = listening(terminal=False, silence=1.05)
    listener.stage_started("dense", 1)
    listener.step_ended(1.0, 0.5, 32)
    end = time.monotonic() + 20.0
    while "still running\n" not in out.getvalue() and time.monotonic() < end:
        time.sleep(0.02)
    listener.close()
    assert "still running\n" in out.getvalue()
