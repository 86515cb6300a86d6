from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from prunegate.report import Comparison, Latency, ModelFigures
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
