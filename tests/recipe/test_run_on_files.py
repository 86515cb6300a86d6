"""Whole runs on images that are read from files, mixed, with one that cannot be read, and with a loss of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from prunegate import RecipeError, RunStoppedError
from prunegate.recipe import Recipe, check_recipe, run
from tests.data.pictures import image_folder
from tests.recipe.test_resume import StopAfter

pytestmark = pytest.mark.usefixtures("no_pictures")


def soft_margin(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A loss of one's own: of class probabilities, as mixing makes them."""
    assert labels.shape == scores.shape
    return F.binary_cross_entropy_with_logits(scores, labels)


def recipe(images: Path, **training: Any) -> Recipe:
    stage = {"epochs": 1, "learning_rate": 0.05}
    return Recipe.model_validate(
        {
            "name": "files",
            "model": {"name": "timm/test_resnet", "arguments": {"num_classes": 3}},
            "data": {
                "name": "folder",
                "folder": str(images),
                "image_size": 16,
                "batch_size": 4,
                "transform": {"auto_augment": "rand-m5"},
                "mixup": {"mixup_alpha": 0.2, "label_smoothing": 0.1},
                "workers": 1,
            },
            "training": training,
            "budget": {"fraction": 0.6},
            "stages": {"dense": stage, "gate": stage, "finetune": stage},
        }
    )


def test_folder_of_images_from_end_to_end_and_resumed(tmp_path: Path) -> None:
    images = image_folder(tmp_path / "images")
    (images / "train" / "bee" / "broken.png").write_bytes(b"")
    settings = recipe(images, loss="tests.recipe.test_run_on_files:soft_margin")
    summary = run(settings, tmp_path / "run")
    for stop in (3, 5):  # in the midst of the dense and of the gate stage
        with pytest.raises(RunStoppedError):
            run(settings, tmp_path / "stopped", resume=True, stop=StopAfter(stop))
    run(settings, tmp_path / "stopped", resume=True)
    assert summary.realised_macs <= 0.6 * summary.dense_macs
    for name in ("metrics.jsonl", "compact.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cross_entropy", r"training\.loss: found 'cross_entropy', expected module:function"),
        ("no.such:loss", r"training\.loss: 'no\.such:loss' cannot be imported"),
    ],
)
def test_loss_that_is_not_there_is_told_by_the_check(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        check_recipe(recipe(image_folder(tmp_path / "images"), loss=name))
