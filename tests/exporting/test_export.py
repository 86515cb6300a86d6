"""ONNX files and exported programs are run before they are written, and refused if their outputs differ."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from prunegate.errors import ExportError
from prunegate.exporting import FORMATS, export_model
from prunegate.exporting import export as module
from prunegate.groups import ExampleInputs
from tests.checkpoint.models import compacted_once

FIVE = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("name", "backend"), [("timm/test_resnet", "auto"), ("timm/test_convnext", "graph")])
def test_file_takes_any_number_of_samples(tmp_path: Path, format: str, name: str, backend: str) -> None:
    result, x = compacted_once(name, 64, backend)
    model = copy.deepcopy(result.model).train()
    file = tmp_path / f"compact.{format}"
    done = export_model(model, ExampleInputs.of(x), file, format)
    assert done.max_rel <= 1e-5
    assert done.batches == (2, 3)
    assert model.training
    expected = model.eval()(FIVE)
    if format == "onnx":
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: FIVE.numpy()})[0])
    else:
        found = torch.export.load(file).module()(FIVE)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]  # the weights are in the one file


def test_opset_is_the_one_asked_for(tmp_path: Path) -> None:
    result, x = compacted_once("timm/test_resnet", 64, "auto")
    export_model(result.model, ExampleInputs.of(x), tmp_path / "c.onnx", "onnx", opset=20)
    assert onnx.load(tmp_path / "c.onnx").opset_import[0].version == 20


class Scores(nn.Module):
    """Two inputs by name, one of whole numbers; two outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = torch.tanh(self.inner(self.embed(ids)))
        return {"scores": self.head(hidden), "size": hidden.square().sum(-1) * scale[:, None]}


@pytest.mark.parametrize("format", FORMATS)
def test_inputs_by_name_and_several_outputs(tmp_path: Path, format: str) -> None:
    inputs = ExampleInputs.of({"ids": torch.arange(8).reshape(2, 4), "scale": torch.tensor([1.0, 3.0])})
    done = export_model(Scores(), inputs, tmp_path / f"c.{format}", format)
    assert done.max_rel <= 1e-5


class Fixed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, -1) + torch.zeros(2, 1)


def test_fixed_number_of_samples_is_told_and_can_be_had(tmp_path: Path) -> None:
    inputs = ExampleInputs.of(torch.randn(2, 3))
    with pytest.raises(ExportError, match=r"pt2: the model cannot be exported: .*dynamic_batch=False"):
        export_model(Fixed(), inputs, tmp_path / "c.pt2", "pt2")
    assert list(tmp_path.iterdir()) == []
    assert export_model(Fixed(), inputs, tmp_path / "c.pt2", "pt2", dynamic_batch=False).batches == (2,)


class ByValue(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[x > 0][:2] if x.sum() > 0 else x


def test_model_that_no_static_format_holds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"c?onnx: the model cannot be exported"):
        export_model(ByValue(), ExampleInputs.of(torch.randn(2, 3)), tmp_path / "c.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
def test_file_that_computes_something_else_is_not_written(
    tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = module.FORMATS[format].write

    def wrong(model: nn.Module, *rest: Any) -> None:
        with torch.no_grad():
            next(model.parameters()).mul_(1.01)
        write(model, *rest)

    monkeypatch.setitem(module.FORMATS, format, module.Target(format, (), wrong, module.FORMATS[format].run))
    (tmp_path / "c").write_text("before")
    with pytest.raises(ExportError, match=r"differs from the compact one by 0\.0.* Nothing was written"):
        export_model(nn.Linear(4, 3), ExampleInputs.of(torch.randn(2, 4)), tmp_path / "c", format)
    assert (tmp_path / "c").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(
        ExportError, match=r"needs the package onnxruntime. Install them: pip install 'prunegate\[onnx\]'"
    ):
        export_model(nn.Linear(4, 3), ExampleInputs.of(torch.randn(2, 4)), tmp_path / "c.onnx", "onnx")


def test_unknown_format_and_needless_opset_are_refused(tmp_path: Path) -> None:
    inputs = ExampleInputs.of(torch.randn(2, 4))
    with pytest.raises(ExportError, match="format: found 'tflite', expected one of onnx, pt2"):
        export_model(nn.Linear(4, 3), inputs, tmp_path / "c", "tflite")
    with pytest.raises(ExportError, match="opset: found 18 for the format pt2"):
        export_model(nn.Linear(4, 3), inputs, tmp_path / "c", "pt2", opset=18)


def test_numbers_are_compared_with_their_size(tmp_path: Path) -> None:
    """What is small beside the largest output may differ by more than a ten-thousandth of itself."""
    assert module._relative([torch.tensor([1e3, 1e-3])], [torch.tensor([1e3, 1.01e-3])]) == pytest.approx(1e-8, rel=0.1)
    assert module._relative([torch.zeros(2)], [torch.zeros(3)]) == np.inf
    assert module._relative([torch.zeros(2)], [torch.full((2,), torch.nan)]) == np.inf
