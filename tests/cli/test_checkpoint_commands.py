"""`show`, `verify` and `export` of checkpoints, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

import prunegate
from prunegate.builders import Builder
from prunegate.checkpoint import read_document
from prunegate.data import DataSettings, load_data
from prunegate.exporting.pt2 import METADATA
from tests.cli.commands import refused, succeeded
from tests.conftest import SmallNet, random_masks

OWN = """
from torch import nn
from tests.conftest import SmallNet

def make() -> nn.Module:
    return SmallNet()

def nothing() -> None:
    return None

number = 3
"""


@pytest.fixture
def own(folder: Path) -> Path:
    """A checkpoint of a user's own class, and the module that makes it."""
    gated = prunegate.wrap(SmallNet().eval(), torch.zeros(2, 3, 16, 16))
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    prunegate.compact(gated).save(folder / "own.safetensors")
    (folder / "own_models.py").write_text(OWN)
    return folder / "own.safetensors"


def test_show_tells_what_is_kept_without_reading_weights(
    folder: Path, run_folder: Path, checkpoint: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    out = succeeded(capsys, "show", "done/compact.safetensors")
    document = read_document(run_folder / "compact.safetensors")
    assert "timm/test_resnet, in_chans=1, num_classes=10" in out
    macs = document.costs["macs"]
    assert f"{macs['compact']:,} of {macs['dense']:,}" in out
    assert document.weights_sha256 in out
    for name, kept in document.steps[0].plan.kept.items():
        assert name in out
        assert str(len(kept)) in out
    damaged = bytearray(checkpoint)
    damaged[-1] ^= 1  # of the weights, which are not looked at
    (run_folder / "compact.safetensors").write_bytes(bytes(damaged))
    assert succeeded(capsys, "show", "done/compact.safetensors") == out
    (run_folder / "compact.safetensors").write_bytes(bytes(damaged[:200]))
    assert "cannot be read as a safetensors file" in refused(folder, capsys, "show", "done/compact.safetensors")


def test_show_json_holds_the_document(folder: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(succeeded(capsys, "show", "--json", "done/compact.safetensors"))
    model = prunegate.load(run_folder / "compact.safetensors")
    assert shown["builder"]["name"] == "test_resnet"
    assert {name: tuple(entry["shape"]) for name, entry in shown["tensors"].items()} == {
        name: tuple(tensor.shape) for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }


def test_verify_compares_hash_fingerprint_and_dense_weights(
    folder: Path, run_folder: Path, checkpoint: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    out = succeeded(capsys, "verify", "done")
    assert "weights match their hash" in out
    assert "outputs are those when saved, within" in out
    (run_folder / "compact.safetensors").write_bytes(checkpoint[:-1] + bytes([checkpoint[-1] ^ 1]))
    assert "weights_sha256: does not match" in refused(folder, capsys, "verify", "done")


def test_verify_against_the_dense_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    builder = Builder.parse("timm/test_resnet", {"num_classes": 10})
    dense = builder.build().eval()
    save_file(dense.state_dict(), folder / "dense.safetensors")
    gated = prunegate.wrap(dense, torch.zeros(1, 3, 32, 32))
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    result = prunegate.compact(gated)
    result.save(folder / "c.safetensors")
    out = succeeded(capsys, "verify", "c.safetensors", "--against", "dense.safetensors")
    assert "every parameter equals the dense model's after the cut" in out
    with torch.no_grad():
        result.model.fc.bias.add_(1.0)
    result.save(folder / "c.safetensors")
    out = succeeded(capsys, "verify", "c.safetensors", "--against", "dense.safetensors")
    count = len(list(dense.parameters()))
    assert f"{count - 1} of {count} parameters equal the dense model's" in out
    save_file({"x": torch.zeros(1)}, folder / "other.safetensors")
    message = refused(folder, capsys, "verify", "c.safetensors", "--against", "other.safetensors")
    assert "other.safetensors: does not fit the dense model" in message


def test_own_class_needs_the_code_that_makes_it_and_takes_no_other(
    folder: Path, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Code is never loaded from a file" in refused(folder, capsys, "verify", "own.safetensors")
    out = succeeded(capsys, "verify", "own.safetensors", "--model", "own_models:make")
    assert "outputs are those when saved" in out
    assert "SmallNet: pass it to load" in succeeded(capsys, "show", "own.safetensors")
    for name, expected in {
        "own_models:missing": "cannot be imported",
        "no_such_module:make": "cannot be imported",
        "own_models:number": "is a int, expected a function or class",
        "own_models:nothing": "made a NoneType, expected a module",
    }.items():
        assert expected in refused(folder, capsys, "verify", "own.safetensors", "--model", name)


def test_export_to_onnx_runs_elsewhere(folder: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = succeeded(capsys, "export", "done", "--out", "small.onnx")
    assert "differs by" in out
    assert "on 2 and 3 samples" in out
    x = torch.randn(4, 1, 16, 16)
    session = onnxruntime.InferenceSession(str(folder / "small.onnx"), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    model = prunegate.load(run_folder / "compact.safetensors")
    torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-4)


def test_export_to_an_exported_program_of_another_size(
    folder: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--format", "pt2", "--input-size", "1", "24", "24", "--fixed-batch"]
    assert "on 2 samples" in succeeded(capsys, "export", "done", "--out", "small.bin", *options)
    program = torch.export.load(folder / "small.bin")
    assert program.module()(torch.zeros(2, 1, 24, 24)).shape == (2, 10)


def test_verify_and_export_print_json(folder: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = read_document(run_folder / "compact.safetensors")
    found = json.loads(succeeded(capsys, "verify", "done", "--json"))
    assert found.pop("fingerprint")["max_rel"] < 1e-9
    assert found == {"file": "done/compact.safetensors", "weights_sha256": document.weights_sha256}
    dense = Builder.parse("timm/test_resnet", {"in_chans": 1, "num_classes": 10}).build()
    save_file(dense.state_dict(), folder / "dense.safetensors")
    found = json.loads(succeeded(capsys, "verify", "done", "--json", "-q", "--against", "dense.safetensors"))["against"]
    assert (found["file"], found["parameters"]) == ("dense.safetensors", len(list(dense.parameters())))
    assert 0 <= found["equal"] < found["parameters"]
    assert found["largest_difference"] > 0
    for out, more in (("a.safetensors", set()), ("a.onnx", {"max_rel", "batches"}), ("a.pt2", {"max_rel", "batches"})):
        found = json.loads(succeeded(capsys, "export", "done", "--out", out, "--json"))
        assert set(found) == {"file", "bytes", "format"} | more
        assert found["bytes"] == (folder / out).stat().st_size


@pytest.mark.usefixtures("no_picture")
def test_exports_say_what_inputs_and_classes_mean(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    succeeded(capsys, "run", "tiny.yaml", "-q", "--out", "run")
    data = read_document(folder / "run" / "compact.safetensors").extra["data"]
    meaning = load_data(DataSettings(name="digits", image_size=16, train_limit=128)).meaning
    assert data["class_names"] == list("0123456789")
    assert (data["name"], data["largest_pixel"]) == ("digits", 16.0)
    assert (data["mean"], data["deviation"]) == (list(meaning.mean), list(meaning.deviation))
    assert "class_names" in succeeded(capsys, "show", "run")
    succeeded(capsys, "export", "run", "--out", "small.onnx")
    session = onnxruntime.InferenceSession(str(folder / "small.onnx"), providers=["CPUExecutionProvider"])
    texts = session.get_modelmeta().custom_metadata_map
    assert texts["prunegate.model"] == "timm/test_resnet"
    assert texts["prunegate.recipe"] == "tiny"
    for name in ("mean", "deviation", "class_names", "largest_pixel"):
        assert json.loads(texts[f"prunegate.{name}"]) == data[name]
    succeeded(capsys, "export", "run", "--out", "small.pt2")
    kept = {METADATA: ""}
    torch.export.load(folder / "small.pt2", extra_files=kept)
    assert json.loads(kept[METADATA]) == {name: text for name, text in texts.items() if name.startswith("prunegate.")}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--out", "x.tflite"], "'.tflite' is not a known format. Use --format safetensors|onnx|pt2"),
        (
            ["--out", "x.safetensors", "--opset", "18"],
            "--opset, --fixed-batch and --input-size do not apply to a checkpoint",
        ),
        (["--out", "x.pt2", "--opset", "18"], "opset: found 18 for the format pt2"),
        (["--out", "x.onnx", "--input-size", "1", "0", "16"], "expected sizes of at least 1"),
    ],
)
def test_export_refuses(
    folder: Path, run_folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert expected in refused(folder, capsys, "export", "done", *arguments)


@pytest.mark.usefixtures("no_picture")
def test_recipe_may_name_a_model_of_the_users_own(folder: Path, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "my_net.py").write_text(
        "import timm\n\ndef build(width):\n    return timm.create_model('test_resnet', in_chans=1, num_classes=width)\n"
    )
    settings = ["--set", "model.name=my_net:build", "--set", "model.arguments={width: 10}"]
    assert "valid" in succeeded(capsys, "run", "tiny.yaml", "--check", *settings)
    succeeded(capsys, "run", "tiny.yaml", "--out", "runs/own", *settings)
    # What it made is a model of timm's after all, and that is found out.
    builder = read_document(folder / "runs" / "own" / "compact.safetensors").builder
    assert builder is not None
    assert builder.as_dict()["arguments"] == {"num_classes": 10, "in_chans": 1}
    assert "weights match their hash" in succeeded(capsys, "verify", "runs/own")
    message = refused(folder, capsys, "run", "tiny.yaml", "--check", "--set", "model.name=my_net:buidl")
    assert "'my_net:buidl' cannot be imported" in message


@pytest.mark.parametrize("command", [("verify",), ("export", "--out", "copied.safetensors")])
def test_a_class_of_ones_own_is_refused_with_the_option_to_pass(
    folder: Path, own: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    name, *options = command
    told = refused(folder, capsys, name, own.name, *options)
    assert "Pass --model module:function, which makes the dense model" in told
    assert "load(" not in told
