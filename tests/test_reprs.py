"""`repr` of objects at a prompt: a line or a few."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torchvision.models import resnet18

import prunegate


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    gated = prunegate.wrap(resnet18(), torch.zeros(2, 3, 64, 64))
    steps = prunegate.GateSteps(gated, 0.5, steps=100)
    drawn = repr(gated.gates)
    gated.harden(steps.budget)
    result = prunegate.compact(gated)
    return {
        "compaction": result,
        "plan": result.plan,
        "steps": steps,
        "tau": steps.tau,
        "budget": steps.budget,
        "gates": gated.gates,
        "drawn": drawn,
        "group": gated.groups[0],
        "groups": gated.groups,
        "member": gated.groups[0].members[0],
        "explanation": gated.explain(),
        "analysis": gated.analysis,
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "compaction",
            r"Compaction of a ResNet, by the module back-end:\n"
            r"  Plan\([\d,]+ of [\d,]+ units kept in 12 channel groups\)\n"
            r"  macs 0\.\d{3} of dense, params 0\.\d{3} of dense; "
            r"differs from the gated model by \d.\de-\d+ \(relative\)\n"
            r"  \.model is the compact model; \.summary\(\) has details, \.save\(path\) writes it",
        ),
        ("plan", r"Plan\([\d,]+ of 2,880 units kept in 12 channel groups\)"),
        (
            "steps",
            r"GateSteps\(step 0 of 100, gates are frozen after step 60, tau 2, "
            r"Budget\('macs', fraction=0\.5, multiplier=0, step 0 of 50 of the ramp\)\)",
        ),
        ("tau", r"TauSchedule\(2 to 0\.1, exponential, step 0 of 60, tau 2\)"),
        ("budget", r"Budget\('macs', fraction=0\.5, multiplier=0, step 0 of 50 of the ramp\)"),
        ("gates", r"Gates\(\s*12 channel groups with 2,880 units, fixed masks\s.*\)"),
        ("group", r"ChannelGroup\('conv1', 64 units of conv1\.weight\[0\], bn1\.weight\[0\], .* and \d+ more\)"),
        ("member", r"conv1\.weight\[0\]"),
        ("analysis", r"Analysis\(12 channel groups with 2,880 units, 1 not prunable\)"),
    ],
)
def test_repr_says_what_it_is(objects: dict[str, Any], name: str, text: str) -> None:
    assert re.fullmatch(text, repr(objects[name]), re.DOTALL), repr(objects[name])


def test_gates_that_are_drawn_say_how(objects: dict[str, Any]) -> None:
    assert "12 channel groups with 2,880 units, drawn at tau 2 by gumbel" in objects["drawn"]


def test_an_explanation_is_its_page(objects: dict[str, Any]) -> None:
    assert repr(objects["explanation"]) == str(objects["explanation"])


def test_nothing_fills_the_screen(objects: dict[str, Any]) -> None:
    assert max(len(repr(value)) for value in objects.values()) < 3000
    assert max(len(line) for name in ("compaction", "gates") for line in repr(objects[name]).splitlines()) <= 100


def test_a_summary_has_costs_before_and_after(objects: dict[str, Any]) -> None:
    summary = objects["compaction"].summary()
    assert re.search(r"macs: [\d,]+ -> [\d,]+ \(0\.\d{3}\)", summary)
    assert len(summary.splitlines()) < 20
