"""The header that a run shows before it trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import prunegate
from prunegate.builders import Builder
from prunegate.data import load_data
from prunegate.recipe import Recipe
from prunegate.recipe.header import run_start
from prunegate.recipe.state import RunState
from prunegate.report import RunStart
from prunegate.training import Processes

NESTED = {
    "name": "nested",
    "model": {"name": "timm/test_resnet", "arguments": {"in_chans": 1, "num_classes": 10}},
    "data": {"name": "digits", "image_size": 16, "train_limit": 256},
    "budget": {"fraction": [0.5, 0.25], "also": {"params": 0.6}},
    "stages": {
        "dense": {"epochs": 5, "learning_rate": 0.1},
        "gate": {"epochs": 4, "learning_rate": 0.1},
        "finetune": {"epochs": 3, "learning_rate": 0.1},
    },
}


def started(state: RunState | None = None, **changed: object) -> RunStart:
    recipe = Recipe.model_validate(NESTED | changed)
    builder = Builder.parse("timm/test_resnet", {"in_chans": 1, "num_classes": 10})
    gated = prunegate.wrap(builder.build(), torch.zeros(2, 1, 16, 16))
    return run_start(recipe, builder, gated, load_data(recipe.data), Processes(), Path("runs/nested"), state)


def test_model_data_sizes_device_and_budget_are_told() -> None:
    facts = dict(started().facts)
    assert facts["model"].startswith("timm/test_resnet (in_chans=1, num_classes=10): 373,370 parameters, ")
    assert facts["model"].endswith(" MACs per sample; 672 units in 11 channel groups")
    assert facts["data"] == "digits: 256 training and 355 test samples of 1 × 16 × 16, 10 classes, batches of 64"
    assert facts["budget"] == "0.5, then 0.25 of the MACs, 0.6 of the parameters"
    assert f"torch {torch.__version__}" in facts["device"]
    assert facts["epochs"] == "dense 5 → gate 4 → finetune 3 → gate 4 → finetune 3, 4 steps each"
    assert facts["folder"] == "runs/nested/"


def test_an_absolute_budget_is_told_as_it_is() -> None:
    assert dict(started(budget={"limit": 500_000}).facts)["budget"] == "500,000 MACs"


@pytest.mark.parametrize(
    ("stage", "budget", "left"),
    [
        ("dense", 0, ["dense", "gate", "finetune", "gate", "finetune"]),
        ("finetune", 0, ["finetune", "gate", "finetune"]),
        ("gate", 1, ["gate", "finetune"]),
        ("finetune", 1, ["finetune"]),
    ],
)
def test_a_run_that_goes_on_tells_the_stages_that_are_left(stage: str, budget: int, left: list[str]) -> None:
    state = RunState(stage, budget, 0, 0, {}, {}, [], [], None, [])
    assert [name for name, _ in started(state).stages] == left
