"""A whole run on images that are read from files, mixed, with one that cannot be read."""

from __future__ import annotations

from pathlib import Path

import torch

from prunegate.recipe import Recipe, run
from tests.data.pictures import image_folder


def test_folder_of_images_from_end_to_end(tmp_path: Path) -> None:
    image_folder(tmp_path / "images")
    (tmp_path / "images" / "train" / "bee" / "broken.png").write_bytes(b"")
    stage = {"epochs": 1, "learning_rate": 0.05}
    recipe = Recipe.model_validate(
        {
            "name": "files",
            "model": {"name": "timm/test_resnet", "arguments": {"num_classes": 3}},
            "data": {
                "name": "folder",
                "folder": str(tmp_path / "images"),
                "image_size": 16,
                "batch_size": 4,
                "transform": {"auto_augment": "rand-m5"},
                "mixup": {"mixup_alpha": 0.2, "label_smoothing": 0.1},
            },
            "budget": {"fraction": 0.6},
            "stages": {"dense": stage, "gate": stage, "finetune": stage},
        }
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    summary = run(recipe, tmp_path / "run")
    torch.set_num_threads(threads)
    assert summary.realised_macs <= 0.6 * summary.dense_macs
    written = (tmp_path / "run" / "recipe.yaml").read_text()
    assert "mixup_alpha: 0.2" in written
