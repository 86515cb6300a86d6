"""Invalid commands give one clear error and exit code 2, and leave no files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.commands import refused, succeeded


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("budget.fractoin=0.5", "budget.fractoin: unknown key. Nearest known key: fraction."),
        ("seed=zero", "seed: found 'zero', expected a valid integer."),
        ("budget.fraction=0", "budget.fraction: found 0, expected greater than 0."),
        ("budget.fraction=1.5", "budget.fraction: found 1.5, expected less than or equal to 1."),
        ("tau.end=0", "tau.end: found 0, expected greater than 0."),
        ("tau.end=-0.1", "tau.end: found -0.1, expected greater than 0."),
        ("model.name=timm/test_resnett", "timm has no model 'test_resnett'. Nearest: timm/test_resnet"),
        ("data={name: fashion_mnist, folder: nowhere}", "data.folder: found no Fashion-MNIST in nowhere"),
    ],
)
@pytest.mark.parametrize("check", [True, False], ids=["check", "run"])
def test_bad_recipe_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], override: str, expected: str, check: bool
) -> None:
    options = ["--check"] if check else []
    assert expected in refused(folder, capsys, "run", "tiny.yaml", "--set", override, *options)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("budget.fraction=1e-6", "of the dense"),
        ("gates.exclude=['*']", "no channel group can be pruned, expected at least one"),
        ("gates.exclude=['layer9.*']", "exclude: 'layer9.*' matches no channel group"),
        ("model.arguments.no_such=1", "timm/test_resnet: cannot be built with in_chans=1"),
        ("model.arguments.in_chans=3", "does not accept images of shape (1, 16, 16)"),
    ],
)
def test_run_that_cannot_succeed_is_refused_before_it_writes(
    folder: Path, capsys: pytest.CaptureFixture[str], override: str, expected: str
) -> None:
    assert expected in refused(folder, capsys, "run", "tiny.yaml", "--set", override)


def test_budget_under_the_least_reachable_names_what_is_reachable(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(folder, capsys, "run", "tiny.yaml", "--set", "budget.fraction=1e-6")
    assert "prunegate: budget: found " in message
    assert ", expected at least " in message
    assert "Raise the fraction" in message


def test_all_mistakes_of_a_recipe_are_told_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "tiny.yaml").write_text("name: x\nsede: 1\ntau: {start: hot}\n")
    message = refused(folder, capsys, "run", "tiny.yaml", "--set", "budget.fraction=2")
    for expected in (
        "tiny.yaml:2: sede: unknown key. Nearest known key: seed.",
        "tiny.yaml:3: tau.start: found 'hot', expected a valid number.",
        "tiny.yaml:1: model: is missing",
        "--set budget.fraction=2: budget.fraction: found 2",
    ):
        assert expected in message


def test_folder_of_another_run_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "runs" / "tiny").mkdir(parents=True)
    (folder / "runs" / "tiny" / "recipe.yaml").write_text("name: other\n")
    message = refused(folder, capsys, "run", "tiny.yaml")
    assert "runs/tiny: holds another run, expected a new or empty folder" in message
    assert "--out" in message


def test_missing_recipe_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "none.yaml: cannot be read" in refused(folder, capsys, "run", "none.yaml")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["resnet18"], "expected timm/<name>, torchvision/<name> or prunegate/<name>. Nearest: timm/resnet18"),
        (["timm/resnet_18"], "timm has no model 'resnet_18'. Nearest: timm/resnet18"),
        (["timm/test_resnet", "--arg", "in_chans"], "--arg in_chans: expected KEY=VALUE"),
        (["timm/test_resnet", "--arg", "in_chans=["], "--arg in_chans=[: found '[', expected a value in YAML"),
        (["timm/test_resnet", "--arg", "pretrained=true"], "argument 'pretrained' is refused"),
        (["timm/test_resnet", "--input-size", "3", "0", "9"], "--input-size: found (3, 0, 9), expected sizes"),
        (["timm/test_resnet", "--input-size", "4", "9", "9"], "running the model on the example inputs failed"),
    ],
)
def test_inspect_refuses(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    assert expected in refused(folder, capsys, "inspect", *arguments)


def test_export_refuses_a_folder_without_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(folder, capsys, "export", ".", "--out", "x.safetensors")
    assert "contains no compact.safetensors, expected the folder of a finished run" in message


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_export_refuses_a_truncated_checkpoint(
    folder: Path, run_folder: Path, checkpoint: bytes, capsys: pytest.CaptureFixture[str], share: float
) -> None:
    (run_folder / "compact.safetensors").write_bytes(checkpoint[: int(share * len(checkpoint))])
    message = refused(folder, capsys, "export", "done", "--out", "new/x.safetensors")
    assert "done/compact.safetensors: cannot be read as a safetensors file" in message
    assert "It is truncated or of another kind." in message


def test_export_refuses_a_changed_checkpoint(
    folder: Path, run_folder: Path, checkpoint: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_folder / "compact.safetensors").write_bytes(checkpoint[:-1] + bytes([checkpoint[-1] ^ 1]))
    message = refused(folder, capsys, "export", "done", "--out", "x.safetensors")
    assert "weights_sha256: does not match the tensors. The file is damaged or changed." in message


def test_export_refuses_a_foreign_checkpoint(
    folder: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"weight": torch.zeros(3)}, run_folder / "compact.safetensors")
    message = refused(folder, capsys, "export", "done", "--out", "x.safetensors")
    assert "has no 'prunegate' metadata, expected a checkpoint saved by prunegate" in message
    (run_folder / "compact.safetensors").write_bytes(b"\x80\x04N.")  # a pickle is never opened
    message = refused(folder, capsys, "export", "done", "--out", "x.safetensors")
    assert "cannot be read as a safetensors file" in message


def test_export_overwrites_only_when_told(
    folder: Path, run_folder: Path, checkpoint: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "x.safetensors").write_text("precious")
    message = refused(folder, capsys, "export", "done", "--out", "x.safetensors")
    assert "x.safetensors: exists already, expected a new file. Choose another, or use --force." in message
    succeeded(capsys, "export", "done", "--out", "x.safetensors", "--force")
    assert (folder / "x.safetensors").read_bytes() == checkpoint


def test_export_refuses_a_folder_as_its_file(
    folder: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(folder, capsys, "export", "done", "--out", ".", "--force")
    assert "is a folder, expected the name of a file to write" in message


def test_place_that_cannot_be_written_is_named(
    folder: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(folder, capsys, "export", "done", "--out", "tiny.yaml/x.safetensors")
    assert message.startswith("prunegate: tiny.yaml")
    assert "Choose another path" in message
