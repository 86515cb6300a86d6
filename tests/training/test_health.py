"""Gate health figures, and when there is a warning."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from torch import nn

import prunegate
from prunegate.training import Budget, GateHealth, GateTraining, TauSchedule, TrainingPlan, fit


@pytest.fixture
def gated() -> prunegate.GatedModel:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    return prunegate.wrap(model, torch.zeros(2, 3))


def test_health_counts_what_the_logits_say(gated: prunegate.GatedModel) -> None:
    with torch.no_grad():
        gated.gates.logits.fill_(4.0)
        gated.gates["0"].logits[:3] = torch.tensor([0.0, 2.0, -2.0])  # keep probabilities 0.5, 0.88 and 0.12
        gated.gates["2"].logits[1:] = -4.0
    before = gated.gates.hard_mask().clone()
    before[0] = ~before[0]
    health = GateHealth.of(gated, "macs", 20.0, before)
    assert health.undecided_share == pytest.approx(3 / 12)
    assert health.flipped_share == pytest.approx(1 / 12)
    assert health.collapsed == ("2",)
    assert health.realised == 3 * 6 + 6 * 1 + 1 * 2
    assert health.expected == pytest.approx(float(gated.expected_cost("macs").detach()))


def test_looking_uses_up_no_noise_and_changes_no_mode(gated: prunegate.GatedModel) -> None:
    gated.eval()
    with torch.no_grad():
        gated.gates.logits.zero_()
    noise = gated.gates.generator.get_state()
    first, second = gated.gates.sample(), gated.gates.sample()
    assert torch.equal(first, second)
    assert torch.equal(gated.gates.generator.get_state(), noise)
    assert not gated.gates.training
    gated.train()
    assert torch.equal(gated.gates.draw().bool(), first)


def health(**changed: object) -> GateHealth:
    sound = {
        "metric": "macs", "undecided_share": 0.1, "flipped_share": 0.02, "collapsed": (), "sampled": 51,
        "expected": 51.0, "realised": 52, "target": 50.0,
    }  # fmt: skip
    return GateHealth(**{**sound, **changed})  # type: ignore[arg-type]


def test_sound_gates_give_no_warning() -> None:
    assert health().warnings() == []
    assert health(flipped_share=None).warnings() == []


@pytest.mark.parametrize(
    ("changed", "told", "remedy"),
    [
        ({"undecided_share": 0.4}, "40% of the units are undecided", "gates.learning_rate"),
        ({"flipped_share": 0.3}, "30% of the mask entries flipped", "stages.gate.epochs"),
        ({"expected": 60.0}, "1.20 of the target", "stages.gate.target_ramp"),
        ({"expected": 40.0}, "0.80 of the target", "stages.gate.target_ramp"),
        (
            {"collapsed": ("a", "b", "c", "d")},
            r"4 channel groups keep a single unit \(a, b, c, \.\.\.\)",
            "gates.exclude",
        ),
    ],
)
def test_each_trouble_is_told_with_its_remedy(changed: dict[str, object], told: str, remedy: str) -> None:
    (warning,) = health(**changed).warnings()
    assert re.search(told, warning)
    assert remedy in warning


def test_gate_stage_that_is_too_short_is_warned_of_once(
    gated: prunegate.GatedModel, caplog: pytest.LogCaptureFixture
) -> None:
    data = [(torch.randn(8, 3), torch.randint(2, (8,)))]
    gates = GateTraining(Budget("macs", 0.5), TauSchedule(gated, steps=2), 0.01)
    with caplog.at_level(logging.WARNING, logger="prunegate"):
        records = list(fit(gated, lambda epoch: data, 1, TrainingPlan("gate", 2, 0.01), lambda model: 0.0, gates))
    assert len([r for r in caplog.records if "of the target at the end" in r.getMessage()]) == 1
    assert records[0].flipped_share is None
    assert records[1].flipped_share == 0.0
    assert records[1].collapsed_groups == 0
    assert records[1].sampled_macs is not None
