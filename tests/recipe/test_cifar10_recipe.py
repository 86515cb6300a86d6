"""The recipe for CIFAR-10, on generated images."""

from __future__ import annotations

from pathlib import Path

import torch

from prunegate.recipe import load_recipe, run
from tests.data.test_cifar10 import cifar

RECIPE = Path(__file__).parents[2] / "recipes" / "cifar10_resnet56.yaml"


def test_first_steps_of_the_papers_benchmark(tmp_path: Path) -> None:
    """Two steps of every stage; the budget holds whatever was learned."""
    folder = cifar(tmp_path / "bin")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    changes = [f"data.folder={folder}", "data.train_limit=64", "data.batch_size=32"]
    changes += [f"stages.{stage}.epochs=1" for stage in ("dense", "gate", "finetune")]
    recipe = load_recipe(RECIPE, [*changes, "stages.dense.warmup_epochs=0.0"])
    summary = run(recipe, tmp_path / "run")
    torch.set_num_threads(threads)
    share = summary.realised_macs / summary.dense_macs
    assert 0.99 * 0.389 <= share <= 0.389
    assert (tmp_path / "run" / "compact.safetensors").is_file()
