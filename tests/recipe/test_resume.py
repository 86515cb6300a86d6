"""Runs that are stopped or killed, and resume as if uninterrupted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from prunegate import RecipeError, RunFolderError, RunStoppedError
from prunegate.recipe import Recipe, run

pytestmark = pytest.mark.usefixtures("no_pictures")

RECIPE: dict[str, Any] = {
    "name": "resumed",
    "seed": 5,
    "model": {"name": "tests.recipe.small:Small"},
    "data": {"name": "digits", "image_size": 16, "batch_size": 32, "augment": "shift", "train_limit": 256},
    "budget": {"metric": "macs", "fraction": [0.6, 0.4]},
    "training": {"average_decay": 0.9, "clip_norm": 1.0, "accumulation_steps": 2},
    "distillation": {"weight": 0.3},
    "checkpoints": {"every_steps": 3},
    "trackers": ["csv"],
    "stages": {
        "dense": {"epochs": 2, "learning_rate": 0.05},
        "gate": {"epochs": 2, "learning_rate": 0.05},
        "finetune": {"epochs": 2, "learning_rate": 0.05},
    },
}
STEPS = 8 * (2 + 2 * (2 + 2))
SAME = ("metrics.jsonl", "metrics.csv", "dense.safetensors", "compact-0.6.safetensors", "compact.safetensors")


def recipe(**changed: Any) -> Recipe:
    return Recipe.model_validate(RECIPE | changed)


class StopAfter:
    """Asks a run to stop after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> int:
        self.left -= 1
        return 15 if self.left == 0 else 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    run(recipe(), folder)
    return folder


def differing(one: Path, other: Path) -> list[str]:
    return [name for name in SAME if (one / name).read_bytes() != (other / name).read_bytes()]


@pytest.mark.parametrize("interval", [5, 13])
def test_run_stopped_every_few_steps_ends_bit_for_bit_as_the_undisturbed_one(
    undisturbed: Path, tmp_path: Path, interval: int
) -> None:
    folder = tmp_path / "stopped"
    for _ in range(STEPS // interval):
        with pytest.raises(RunStoppedError) as error:
            run(recipe(), folder, resume=True, stop=StopAfter(interval))
        assert error.value.signal == 15
        assert f"prunegate run {folder} --resume" in str(error.value)
        assert len(list((folder / "checkpoints").iterdir())) <= 2
    run(recipe(), folder, resume=True, stop=StopAfter(interval))
    assert differing(undisturbed, folder) == []
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_run_killed_at_twenty_random_moments_ends_bit_for_bit_as_the_undisturbed_one(
    tmp_path: Path, processes: int
) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe().dump_yaml())
    arguments = [str(tmp_path / name) for name in ("recipe.yaml", "undisturbed", "killed")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.recipe.killing", *arguments, "20", str(processes), "0"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    stages = json.loads(done.stdout)
    assert len(stages) == 20
    assert {"dense", "gate", "finetune"} <= set(stages)
    assert differing(tmp_path / "undisturbed", tmp_path / "killed") == []


def test_changed_recipe_is_shown_and_refused_unless_accepted(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RunStoppedError):
        run(recipe(), folder, stop=StopAfter(4))
    before = (folder / "recipe.yaml").read_text()
    changed = recipe(guards={"nonfinite_batches": 7})
    with pytest.raises(
        RecipeError, match=r"(?s)has changed since.*-  nonfinite_batches: 0\n.*\+  nonfinite_batches: 7"
    ):
        run(changed, folder, resume=True)
    assert (folder / "recipe.yaml").read_text() == before
    run(recipe(output={"folder": "elsewhere"}), folder, resume=True, stop=StopAfter(10**9))
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["name"] == "resumed"


def test_damaged_checkpoint_gives_way_to_the_one_before_it(
    undisturbed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RunStoppedError):
        run(recipe(), folder, stop=StopAfter(20))
    newest = max((folder / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:1000])
    run(recipe(), folder, resume=True)
    assert f"{newest}: cannot be read" in caplog.text
    assert differing(undisturbed, folder) == []


def test_state_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RunStoppedError):
        run(recipe(), folder, stop=StopAfter(2))
    for path in (folder / "checkpoints").iterdir():
        torch.save({"version": 1, "code": Evil()}, path)
    with pytest.raises(RunFolderError, match=r"none of the \d+ checkpoints can be read"):
        run(recipe(), folder, resume=True)


def test_state_of_another_version_is_refused_with_what_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RunStoppedError):
        run(recipe(), folder, stop=StopAfter(2))
    for path in (folder / "checkpoints").iterdir():
        torch.save(torch.load(path, weights_only=True) | {"version": 1}, path)
    with pytest.raises(RunFolderError, match=r"made by another version of prunegate\. Start the run again"):
        run(recipe(), folder, resume=True)
    assert "cannot be read: found version 1 of a run's state, expected 2" in caplog.text


class Evil:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('code was run')",)
