"""Commands of the command line, in this process and in a separate one."""

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

import prunegate
from prunegate.builders import Builder
from prunegate.cli import main
from tests.cli.commands import files, succeeded

ROOT = Path(__file__).resolve().parents[2]


def test_check_validates_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(folder)
    printed = succeeded(capsys, "run", "tiny.yaml", "--check", "--out", "else/where")
    assert printed == "tiny.yaml: valid; would write to else/where/\n"
    assert files(folder) == before


def test_recipe_runs_and_its_model_is_exported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = succeeded(capsys, "run", "tiny.yaml", "--set", "budget.fraction=0.25", "--set", "seed=2", "--out", "out")
    for shown in ("tau", "expected", "realised", "accuracy", "dense", "compact", "certificate, float64"):
        assert shown in printed
    resolved = yaml.safe_load((folder / "out" / "recipe.yaml").read_text())
    assert (resolved["budget"]["fraction"], resolved["seed"]) == (0.25, 2)

    printed = succeeded(capsys, "export", "out", "--out", "small/model.safetensors")
    assert printed.startswith("small/model.safetensors: ")
    written = folder / "small" / "model.safetensors"
    assert written.read_bytes() == (folder / "out" / "compact.safetensors").read_bytes()
    assert sorted(p.name for p in written.parent.iterdir()) == ["model.safetensors"]
    model = prunegate.load(written)
    dense = Builder.parse("timm/test_resnet", {"in_chans": 1, "num_classes": 10}).build()
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in dense.parameters())


def test_inspect_shows_groups_and_pinned_with_reasons(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(folder)
    printed = succeeded(capsys, "inspect", "timm/test_resnet", "--arg", "num_classes=7", "--members")
    gated = prunegate.wrap(Builder.parse("timm/test_resnet", {"num_classes": 7}).build(), torch.zeros(1, 3, 160, 160))
    for group in gated.groups:
        assert any(group.name in line and f" {group.num_units} " in line for line in printed.splitlines())
        for member in group.members:
            assert f"{member.tensor}[{member.axis}]" in printed
    assert "not prunable" in printed
    assert any(" 7 " in line and "part of the model's output" in line for line in printed.splitlines())
    assert f"{gated.dense_cost('macs'):,} MACs per sample" in printed
    assert files(folder) == before


def test_inspect_json_agrees_with_the_library(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["torchvision/resnet18", "--input-size", "3", "64", "64", "--json"]
    found = json.loads(succeeded(capsys, "inspect", *arguments))
    gated = prunegate.wrap(Builder.parse("torchvision/resnet18").build(), torch.zeros(1, 3, 64, 64))
    assert found["model"] == "torchvision/resnet18"
    assert found["input_size"] == [3, 64, 64]
    assert found["dense_macs"] == gated.dense_cost("macs")
    assert {g["name"]: g["num_units"] for g in found["groups"]} == {g.name: g.num_units for g in gated.groups}
    share = 1 - gated.least_cost("macs") / gated.dense_cost("macs")
    assert found["reachable_macs_share"] == pytest.approx(share)
    assert all(p["reason"] for p in found["pinned"])


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"prunegate {prunegate.__version__}\n"


@pytest.mark.parametrize("command", [[], ["run"], ["inspect"], ["export"]])
def test_help_helps(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert " ".join(["usage: prunegate", *command]) in printed
    if not command:
        assert "prunegate run recipes/quickstart.yaml" in printed


@pytest.mark.parametrize("arguments", [[], ["prune"], ["run"], ["export", "x"]])
def test_unknown_usage_exits_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: prunegate" in capsys.readouterr().err


def test_interrupt_gives_130(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prunegate.recipe.load_recipe", interrupt)
    assert main(["run", "tiny.yaml"]) == 130
    assert capsys.readouterr().err == "prunegate: interrupted\n"


def test_defect_is_not_dressed_up_as_a_mistake(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no file at all")

    monkeypatch.setattr("prunegate.recipe.load_recipe", fail)
    with pytest.raises(OSError, match="no file at all"):
        main(["run", "tiny.yaml"])


# As its own process ----------------------------------------------------------------------------------


def process(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error::DeprecationWarning:prunegate"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


def test_version_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys, prunegate.cli\n"
        "try: prunegate.cli.main(['--version'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    )
    assert process("-c", code, cwd=folder).returncode == 0


def test_tool_exports_as_the_command_does(folder: Path, run_folder: Path, checkpoint: bytes) -> None:
    tool = str(ROOT / "tools" / "export.py")
    done = process(tool, "done", "--out", "x.safetensors", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "x.safetensors").read_bytes() == checkpoint
    again = process("-m", "prunegate", "export", "done", "--out", "x.safetensors", cwd=folder)
    assert again.returncode == 2
    assert again.stderr == (
        "prunegate: x.safetensors: exists already, expected a new file. Choose another, or use --force.\n"
    )
