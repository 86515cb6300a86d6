"""The report of a user's own loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from torch import nn
from torch.nn import functional

import prunegate
from prunegate import LoopError, NotGatedError
from tests.conftest import SmallNet


def test_a_loop_of_ones_own_is_noted_and_drawn(tmp_path: Path) -> None:
    torch.manual_seed(0)
    gated = prunegate.wrap(SmallNet(), torch.zeros(2, 3, 8, 8)).train()
    gates = prunegate.GateSteps(gated, 0.5, steps=12, frozen=0.5)
    optimizer = torch.optim.SGD(gated.weight_parameters(), lr=0.01)
    record = prunegate.report.Recorder(gated)
    for _ in range(4):
        for _ in range(3):
            optimizer.zero_grad()
            loss = functional.cross_entropy(gated(torch.randn(8, 3, 8, 8)), torch.randint(4, (8,)))
            loss.backward()
            gates.step()
            optimizer.step()
        record.epoch(loss=loss.detach(), accuracy=0.5, target=gates.budget.target(gated))
    assert [(r["stage"], r["epoch"]) for r in record.records] == [
        ("gate", 1), ("finetune", 1), ("finetune", 2), ("finetune", 3)
    ]  # fmt: skip
    first, last = record.records[0], record.records[-1]
    assert 0 < first["expected_macs"] < gated.dense_cost()
    assert first["tau"] > 0
    assert last["tau"] is None
    assert first["target_macs"] > last["target_macs"] == pytest.approx(gated.dense_cost() // 2)
    record.draw(tmp_path / "report.png")
    assert imread(tmp_path / "report.png").shape[0] >= 600
    assert repr(record).startswith("Recorder(4 epochs, ")


def test_a_loop_without_an_accuracy_is_drawn_too(tmp_path: Path) -> None:
    record = prunegate.report.Recorder(prunegate.wrap(SmallNet(), torch.zeros(2, 3, 8, 8)), "mean squared error")
    record.epoch(loss=1.0)
    record.epoch(loss=0.5, stage="dense")
    record.draw(tmp_path / "report.png", "mine")
    assert imread(tmp_path / "report.png").shape[0] >= 600


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(NotGatedError, match="Recorder: found a Linear, expected a gated model"):
        prunegate.report.Recorder(nn.Linear(1, 1))  # type: ignore[arg-type]
    record = prunegate.report.Recorder(prunegate.wrap(SmallNet(), torch.zeros(2, 3, 8, 8)))
    with pytest.raises(LoopError, match=r"Recorder\.draw: no epoch was recorded, expected one or more"):
        record.draw(tmp_path / "report.png")
    assert list(tmp_path.iterdir()) == []


def test_report_is_a_public_name() -> None:
    assert "report" in prunegate.__all__
    assert prunegate.report.measure_latency
