"""Failures of long runs, provoked for real."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from prunegate import DivergedError, RunFolderError, RunStoppedError
from prunegate.data import Batch, ImageData
from prunegate.recipe import Recipe, run
from prunegate.recipe.folder import RunFolder
from prunegate.recipe.stages import Stages
from prunegate.training import Fit
from tests.recipe.test_resume import RECIPE, StopAfter, recipe

pytestmark = pytest.mark.usefixtures("no_pictures")


def short(**changed: Any) -> Recipe:
    stages = {name: {"epochs": 1, "learning_rate": 0.05} for name in ("dense", "gate", "finetune")}
    plain = {"budget": {"fraction": 0.5}, "training": {}, "distillation": {}, "stages": stages}
    return recipe(**(plain | changed))


@pytest.fixture
def nan_sample(monkeypatch: pytest.MonkeyPatch) -> int:
    """One training image of which one pixel is no number."""
    load = ImageData.train_batches

    def train_batches(self: ImageData, *arguments: Any) -> Iterator[Batch]:
        self.train_images[77, 0, 3, 3] = torch.nan
        return load(self, *arguments)

    monkeypatch.setattr(ImageData, "train_batches", train_batches)
    return 77


def test_nan_batch_stops_with_its_samples_and_the_way_back(tmp_path: Path, nan_sample: int) -> None:
    with pytest.raises(DivergedError) as error:
        run(short(checkpoints={"every_steps": 1}), tmp_path / "run")
    text = str(error.value)
    assert "the loss is nan, expected a finite number. The batch holds the training samples" in text
    assert str(nan_sample) in text
    assert f"prunegate run {tmp_path / 'run'} --resume --accept-changes" in text


def test_nan_batches_are_passed_over_as_if_they_had_not_been(
    tmp_path: Path, nan_sample: int, caplog: pytest.LogCaptureFixture
) -> None:
    summary = run(short(guards={"nonfinite_batches": 1}), tmp_path / "run")  # one in each stage's single epoch
    assert caplog.text.count("Skipped: 1 of at most 1.") == 3
    # Through BatchNorm's averages a single NaN would have spread to every output.
    assert summary.comparison.compact.accuracy > 0.2


def test_weights_that_overflow_are_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, ended = tmp_path / "run", Stages._step_ended

    def overflow(self: Stages, fit: Fit) -> None:
        if fit.step == 6:  # as a gradient that is too large would have it
            with torch.no_grad():
                next(fit.model.parameters()).fill_(torch.inf)
        ended(self, fit)

    monkeypatch.setattr(Stages, "_step_ended", overflow)
    with pytest.raises(DivergedError, match=r"dense, step 6: found weights that are not finite.*training\.clip_norm"):
        run(short(checkpoints={"every_steps": 1}), folder)
    states = [torch.load(path, weights_only=True) for path in sorted((folder / "checkpoints").iterdir())]
    assert [state["step"] for state in states] == [4, 5]


def test_budget_that_gates_do_not_follow_stops_with_a_remedy(tmp_path: Path) -> None:
    stages = {**RECIPE["stages"], "gate": {"epochs": 60, "learning_rate": 0.05, "target_ramp": 0.1}}
    with pytest.raises(DivergedError, match=r"budget: .*multiplier.*Raise gates\.learning_rate"):
        run(short(gates={"learning_rate": 1e-9}, budget={"fraction": 0.1}, stages=stages), tmp_path / "run")


@contextlib.contextmanager
def small_disk(size_kib: int) -> Iterator[Path]:
    """A file system of its own, mounted for the test."""
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", folder]
        if subprocess.run(mount, check=False, stderr=subprocess.DEVNULL).returncode:
            pytest.skip("may not mount a file system here")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def test_disk_that_will_be_too_small_is_refused_before_training(tmp_path: Path) -> None:
    settings = short(model={"name": "timm/test_resnet", "arguments": {"in_chans": 1, "num_classes": 10}})
    with small_disk(4000) as disk:
        with pytest.raises(RunFolderError, match=r"found 4 MB of free space, expected \d+ MB for the checkpoints"):
            run(settings, disk / "run")
        assert [path.name for path in disk.rglob("*") if path.is_file()] in ([], [".lock"])


def test_disk_that_fills_up_leaves_whole_files_and_the_run_goes_on_when_there_is_room(tmp_path: Path) -> None:
    undisturbed = tmp_path / "undisturbed"
    settings = short(checkpoints={"every_steps": 3})
    run(settings, undisturbed)
    with small_disk(40_000) as disk:
        folder, filler = disk / "run", disk / "filler"

        def fill_after_steps() -> int:
            steps.append(0)
            if len(steps) == 11:
                with contextlib.suppress(OSError), filler.open("wb") as file:
                    while True:
                        file.write(bytes(2**16))
                        file.flush()
            return 0

        steps: list[int] = []
        with pytest.raises(RunFolderError, match=r"cannot be written.*Free disk space"):
            run(settings, folder, stop=fill_after_steps)
        assert not list(folder.rglob(".*.pt"))
        for path in (folder / "checkpoints").iterdir():
            torch.load(path, weights_only=True)
        filler.unlink()
        run(settings, folder, resume=True)
        for name in ("metrics.jsonl", "compact.safetensors"):
            assert (folder / name).read_bytes() == (undisturbed / name).read_bytes()


def test_two_runs_in_one_folder_are_kept_apart(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RunStoppedError):
        run(short(), folder, stop=StopAfter(2))
    with RunFolder(folder).locked(), pytest.raises(RunFolderError, match="another run is writing to it"):
        run(short(), folder, resume=True)
    run(short(), folder, resume=True)


def command(folder: Path, file: Path) -> list[str]:
    return [sys.executable, "-m", "prunegate", "run", str(file), "--out", str(folder)]


def start(folder: Path, settings: Recipe, **more: Any) -> subprocess.Popen[str]:
    """A run in a process of its own."""
    file = folder.with_suffix(".yaml")
    file.write_text(settings.dump_yaml())
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(folder, file), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment, **more
    )


def wait_for(condition: Any, seconds: float = 120.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not come about"
        time.sleep(0.01)


LONG = {"dense": {"epochs": 100_000, "learning_rate": 0.05}}


def test_sigterm_during_checkpoint_writes_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = recipe(checkpoints={"every_steps": 1, "keep": 3}, stages=RECIPE["stages"] | LONG)
    with start(folder, settings) as child:
        assert child.stderr is not None
        # While a checkpoint is written, its temporary file is there.
        wait_for(
            lambda: list((folder / "checkpoints").glob(".step-*")) and len(list(folder.glob("checkpoints/s*"))) > 1
        )
        child.send_signal(signal.SIGTERM)
        _, errors = child.communicate(timeout=60)
    assert child.returncode == 128 + signal.SIGTERM
    assert f"Resume from the last checkpoint with: prunegate run {folder} --resume" in errors
    assert not list(folder.glob("checkpoints/.step-*"))
    states = [torch.load(path, weights_only=True) for path in sorted((folder / "checkpoints").iterdir())]
    assert len(states) == 3
    assert [state["step"] for state in states] == list(range(states[-1]["step"] - 2, states[-1]["step"] + 1))
