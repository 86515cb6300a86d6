"""Runs that begin with trained weights instead of a dense stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from prunegate import BudgetError, RecipeError
from prunegate.builders import Builder
from prunegate.recipe import Recipe, load_recipe, run
from tests.recipe.test_run import BASE

pytestmark = pytest.mark.usefixtures("no_pictures")


def recipe(**model: object) -> Recipe:
    stages = {"gate": {"epochs": 2, "learning_rate": 0.05}, "finetune": {"epochs": 1, "learning_rate": 0.05}}
    return Recipe.model_validate(BASE | {"model": BASE["model"] | model, "stages": stages})


def test_a_run_begins_with_the_weights_it_is_given(tmp_path: Path) -> None:
    torch.manual_seed(5)
    dense = Builder.parse("timm/test_resnet", {"in_chans": 1, "num_classes": 10}).build()
    names = {f"module.{name}": value for name, value in dense.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": names}, tmp_path / "w.pth")
    summary = run(recipe(weights=str(tmp_path / "w.pth")), tmp_path / "run")
    kept = load_file(tmp_path / "run" / "dense.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in dense.state_dict().items())
    assert summary.realised_macs <= 0.5 * summary.dense_macs


def test_a_run_without_weights_and_dense_stage_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"stages\.dense\.epochs: found 0 and no model\.weights"):
        run(recipe(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("metric", ["macs", "params"])
def test_an_absolute_limit_is_met(tmp_path: Path, metric: str) -> None:
    dense = Builder.parse("timm/test_resnet", {"in_chans": 1, "num_classes": 10}).build()
    torch.save(dense.state_dict(), tmp_path / "w.pth")
    limit = 300_000
    given = recipe(weights=str(tmp_path / "w.pth")).model_dump(exclude_unset=True)
    changed = Recipe.model_validate(given | {"budget": {"metric": metric, "limit": limit}})
    run(changed, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["budget"] == {"metric": metric, "limit": limit}
    assert 0.97 * limit < summary["comparison"]["compact"][metric] <= limit
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["budget"]["limit"] == limit
    load_recipe(tmp_path / "run" / "recipe.yaml")  # as --resume reads it


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (
            10**9,
            r"budget\.limit: found 1,000,000,000 macs, expected less than [\d,]+, the dense cost\. Nothing would be",
        ),
        (10, r"budget: found 10 macs .*expected at least"),
    ],
)
def test_limits_out_of_reach_are_refused_before_anything_is_written(tmp_path: Path, limit: int, message: str) -> None:
    changed = Recipe.model_validate(BASE | {"budget": {"limit": limit}})
    with pytest.raises(BudgetError, match=message):
        run(changed, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_limit_and_a_fraction_are_too_much() -> None:
    with pytest.raises(ValueError, match=r"found a limit of 300 and a fraction of 0\.5, expected only one of them"):
        Recipe.model_validate(BASE | {"budget": {"limit": 300, "fraction": 0.5}})
