"""Runs that begin with trained weights instead of a dense stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prunegate import RecipeError
from prunegate.builders import Builder
from prunegate.recipe import Recipe, run
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
