"""`prunegate bench` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunegate.cli import main
from tests.cli.commands import refused, succeeded

BRIEF = ("--seconds", "0.02", "--batch-sizes", "1,2")


def test_a_run_is_measured_beside_its_dense_model(
    folder: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = succeeded(capsys, "bench", "done", *BRIEF).splitlines()
    assert "inputs 1×16×16; eager, 1 thread, float32, contiguous" in lines[0]
    for name in ("timm/test_resnet", "done/compact"):
        assert sum(line.startswith(f"{name} ") for line in lines) >= 3  # two batch sizes, and memory
    assert any(line.startswith("Batch 1: fastest is ") for line in lines)
    assert any(line.startswith("Batch 2: fastest is ") for line in lines)


def test_json_and_files_hold_every_row(folder: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = "done/compact.safetensors"
    options = ("--runtimes", "eager,fused", "--layouts", "contiguous,channels_last", "--out", "out")
    printed = json.loads(succeeded(capsys, "bench", file, *BRIEF, *options, "--json"))
    assert json.loads((folder / "out" / "bench.json").read_text()) == printed
    assert (folder / "out" / "bench.png").read_bytes().startswith(b"\x89PNG")
    rows = printed["rows"]
    assert len(rows) == 2 * 2 * 2 * 2
    for row in rows:
        assert (row["median_ms"] is None) == (row["reason"] is not None)
        if row["model"] == "compact" and row["reason"] is None:
            assert row["speedup"] > 0
    assert printed["models"][1]["dense"] == "timm/test_resnet"
    assert {entry["batch_size"] for entry in printed["advice"]["fastest"]} == {1, 2}
    message = refused(folder, capsys, "bench", file, "--out", "out")
    assert "bench.json: exists already, expected a new file" in message
    assert "use --force" in message
    out = succeeded(capsys, "bench", file, *BRIEF, "--out", "out", "--force")
    assert out.splitlines()[-1] == "written: out/bench.json and out/bench.png"


def test_models_by_name_take_their_arguments(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = "tests.bench.made:Net"
    sizes = ("--input-size", "3", "16", "16", "--batch-sizes", "2", "--seconds", "0.02")
    told = json.loads(succeeded(capsys, "bench", own, "--against", own, *sizes, "--arg", "width=16", "--json"))
    (model,) = told["models"]  # given twice, measured once
    assert model["params"] == 3 * 16 * 9 + 16 + 2 * 16 + 16 * 2 + 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--batch-sizes", "1;16"], "--batch-sizes: found '1;16', expected whole numbers separated by commas"),
        (["--batch-sizes", "0"], "--batch-sizes: found 0, expected whole numbers from 1 on"),
        (["--runtimes", "onnx"], "Did you mean onnxruntime?"),
        (["--precisions", ","], "--precisions: found nothing, expected values separated by commas"),
        (["--input-size", "0"], "--input-size: found (0,), expected sizes of at least 1"),
        (["--seconds", "-1"], "--seconds: found -1, expected more than 0"),
        (["--out", "tiny.yaml"], "tiny.yaml: is a file, expected a folder to write to"),
        (["--against", "runs/nothing"], "runs/nothing: is no file and no folder; as a model:"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(
    folder: Path, run_folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert expected in refused(folder, capsys, "bench", "done", *arguments)


def test_help_tells_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--help"])
    assert stop.value.code == 0
    assert "exit codes:\n  0 measured" in capsys.readouterr().out
