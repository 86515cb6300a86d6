"""A working directory with one recipe, and the folder of a finished run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import prunegate
from prunegate.builders import Builder
from tests.recipe.short import timed_briefly, undrawn

TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {"name": "timm/test_resnet", "arguments": {"in_chans": 1, "num_classes": 10}},
    "data": {"name": "digits", "image_size": 16, "batch_size": 64, "train_limit": 128},
    "stages": {
        "dense": {"epochs": 1, "learning_rate": 0.1},
        "gate": {"epochs": 1, "learning_rate": 0.1},
        "finetune": {"epochs": 1, "learning_rate": 0.1},
    },
}


@pytest.fixture(scope="package", autouse=True)
def brief_latencies() -> Iterator[None]:
    with timed_briefly():
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, which holds one recipe and nothing else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY, sort_keys=False))
    return tmp_path


@pytest.fixture
def no_picture() -> Iterator[None]:
    """For runs of which something else is looked at."""
    with undrawn():
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A compact checkpoint's bytes."""
    builder = Builder.parse("timm/test_resnet", {"in_chans": 1, "num_classes": 10})
    gated = prunegate.wrap(builder.build().eval(), torch.zeros(1, 1, 16, 16))
    gated.harden(prunegate.Budget("macs", fraction=0.5))
    path = tmp_path_factory.mktemp("checkpoint") / "compact.safetensors"
    prunegate.compact(gated).save(path, builder=builder)
    return path.read_bytes()


@pytest.fixture
def run_folder(folder: Path, checkpoint: bytes) -> Path:
    (folder / "done").mkdir()
    (folder / "done" / "compact.safetensors").write_bytes(checkpoint)
    return folder / "done"
