"""A stranger's first hour: a trained model, the README, and what is typed from it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

import prunegate
from prunegate.cli import main
from tests.cli.commands import succeeded
from tests.recipe.short import timed_briefly

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def section(title: str) -> str:
    return README.partition(f"## {title}\n")[2].partition("\n## ")[0]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    with timed_briefly():
        yield tmp_path


def digits() -> TensorDataset:
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8.0 - 1.0
    return TensorDataset(torch.nn.functional.interpolate(images, scale_factor=2.0), torch.tensor(found.target))


def test_the_readmes_way_for_a_trained_model_is_as_written(here: Path) -> None:
    torch.manual_seed(0)
    dense = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    torch.save(dense.state_dict(), "mine.pth")
    (block,) = re.findall(r"```py\n(.*?)```", section("I have a trained model"), flags=re.DOTALL)
    loader = DataLoader(digits(), 64, shuffle=True, generator=torch.Generator().manual_seed(0))
    names: dict[str, Any] = {
        "prunegate": prunegate, "timm": timm, "torch": torch, "loader": loader, "epochs": 3,
        "example_inputs": digits()[:2][0],
    }  # fmt: skip
    exec(compile(block, "README.md", "exec"), names)
    inputs, labels = digits()[:]
    with torch.no_grad():
        found = names["small"](inputs)
        assert torch.equal(found, names["result"].model.eval()(inputs))
    assert (found.argmax(1) == labels).float().mean() > 0.5
    costs = names["result"].costs["macs"]
    assert costs["compact"] <= 0.5 * costs["dense"]
    kept = names["model"].state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in torch.load("mine.pth", weights_only=True).items())


def test_the_section_says_first_that_wrap_copies() -> None:
    assert section("I have a trained model").strip().startswith("`wrap` works on a copy")
    assert README.index("## I have a trained model") < README.index("## In your own loop")


def test_a_trained_torchvision_model_goes_through_a_recipe_of_init(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    for part, count in (("train", 6), ("val", 3)):
        for name in ("circle", "square"):
            (here / "images" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8).numpy()
                Image.fromarray(pixels).save(here / "images" / part / name / f"{number}.png")
    torch.save({"state_dict": {f"module.{k}": v for k, v in resnet18(num_classes=2).state_dict().items()}}, "mine.pth")
    succeeded(capsys, "init", "torchvision/resnet18", "--weights", "mine.pth", "--folder", "images")
    small = ["--set", "data.image_size=32", "--set", "data.batch_size=4", "--set", "data.workers=0"]
    short = ["--set", "stages.gate.epochs=1", "--set", "stages.finetune.epochs=1"]
    succeeded(capsys, "run", "recipe.yaml", "--check", *small)
    assert main(["run", "recipe.yaml", "--quiet", "--out", "run", *small, *short]) == 0
    assert capsys.readouterr().out == ""
    summary = json.loads((here / "run" / "summary.json").read_text())
    assert summary["comparison"]["compact"]["macs"] <= 0.5 * summary["comparison"]["dense"]["macs"]
    assert "torchvision/resnet18" in succeeded(capsys, "show", "run")
    succeeded(capsys, "export", "run", "--out", "small.safetensors")
    assert prunegate.load("small.safetensors")(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
