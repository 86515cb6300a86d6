"""Each runtime computes the same, or says why it cannot be used."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prunegate.errors import BenchError, PrunegateError
from prunegate.exporting import export_model
from prunegate.groups import ExampleInputs
from prunegate.runtimes import RUNTIMES, Preparer, Setting, of_batch
from prunegate.runtimes import preparing as module
from tests.bench.made import Branching, Net
from tests.conftest import randomise

IMAGES = ExampleInputs.of(torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)))


def setting(runtime: str = "eager", layout: str = "contiguous", precision: str = "float32") -> Setting:
    return Setting(1, layout, precision, runtime)


def result(call: Any) -> torch.Tensor:
    with torch.no_grad():
        out = call()
    return torch.from_numpy(out[0]) if isinstance(out, list) else out


@pytest.mark.parametrize("runtime", [name for name in RUNTIMES if name != "compiled"])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_each_runtime_computes_what_the_model_does(tmp_path: Path, runtime: str, batch_size: int) -> None:
    model = randomise(Net()).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = of_batch(IMAGES, batch_size)
    prepared = Preparer(tmp_path, "cpu").prepare("net", model, inputs, setting(runtime))
    torch.testing.assert_close(result(prepared.call), model(*inputs.args).detach(), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_compiled_model_is_one_of_torch_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = randomise(Net()).eval(), []

    def stand_in(given: nn.Module, **options: Any) -> nn.Module:
        asked.append(options)
        return given

    monkeypatch.setattr(torch, "compile", stand_in)
    prepared = Preparer(tmp_path, "cpu").prepare("net", model, IMAGES, setting("compiled"))
    torch.testing.assert_close(result(prepared.call), model(*IMAGES.args).detach())
    assert asked == [{"dynamic": False}]
    assert not prepared.in_dispatcher


def test_layout_and_precision_reach_weights_and_inputs(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []
    model = Net().eval()
    model.conv.register_forward_hook(lambda conv, args, out: seen.extend((conv.weight, *args)))
    prepared = Preparer(tmp_path, "cpu").prepare("net", model, IMAGES, setting("eager", "channels_last", "bfloat16"))
    assert result(prepared.call).dtype == torch.bfloat16
    assert len(seen) == 2
    for tensor in seen:
        assert tensor.dtype == torch.bfloat16
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    whole = Preparer(tmp_path, "cpu").prepare("net", model, IMAGES, setting())
    assert prepared.weight_bytes < whole.weight_bytes


def test_a_model_is_exported_once_for_all_batch_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    export = export_model

    def counted(model: nn.Module, inputs: ExampleInputs, *rest: Any, **options: Any) -> Any:
        sizes.append(inputs.batch_size())
        return export(model, inputs, *rest, **options)

    monkeypatch.setattr(module, "export_model", counted)
    preparer, model = Preparer(tmp_path, "cpu"), randomise(Net()).eval()
    for batch_size in (1, 3):
        prepared = preparer.prepare("net", model, of_batch(IMAGES, batch_size), setting("onnxruntime"))
        assert np.asarray(result(prepared.call)).shape == (batch_size, 2)
    assert sizes == [1]


class FixedBatch(Net):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x).reshape(2, 2)


def test_a_model_with_a_fixed_batch_is_exported_for_that_one(tmp_path: Path) -> None:
    prepared = Preparer(tmp_path, "cpu").prepare("net", randomise(FixedBatch()).eval(), IMAGES, setting("onnxruntime"))
    assert result(prepared.call).shape == (2, 2)


@pytest.mark.parametrize(
    ("model", "inputs", "chosen", "expected"),
    [
        (nn.Linear(3, 3), torch.zeros(2, 3), setting("eager", "channels_last"), "the inputs are no images"),
        (nn.Linear(3, 3), torch.zeros(2, 3), setting("fused"), "found no convolution or linear layer followed by"),
        (Branching(), torch.zeros(2, 3, 6, 6), setting("fused"), "torch.fx cannot trace the model: TraceError"),
        (Branching(), torch.zeros(2, 3, 6, 6), setting("onnxruntime"), "the model cannot be exported"),
        (Net(), torch.zeros(2, 3, 6, 6), setting("onnxruntime", "channels_last"), "chooses layouts by itself"),
        (Net(), torch.zeros(2, 3, 6, 6), setting("onnxruntime", precision="bfloat16"), "is measured in float32 only"),
    ],
)
def test_what_cannot_be_run_is_refused_with_the_reason(
    tmp_path: Path, model: nn.Module, inputs: torch.Tensor, chosen: Setting, expected: str
) -> None:
    with pytest.raises(PrunegateError, match=expected):
        Preparer(tmp_path, "cpu").prepare("net", model.eval(), ExampleInputs.of(inputs), chosen)


def test_a_missing_runtime_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BenchError, match=r"onnxruntime: is not installed; pip install 'prunegate\[onnx\]'"):
        Preparer(tmp_path, "cpu").prepare("net", Net().eval(), IMAGES, setting("onnxruntime"))


def test_a_fused_model_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.fx.experimental import optimization

    monkeypatch.setattr(optimization, "fuse", lambda model: nn.Sequential(nn.Flatten(), nn.Linear(108, 2)))
    with pytest.raises(BenchError, match="fused: the outputs differ by"):
        Preparer(tmp_path, "cpu").prepare("net", randomise(Net()).eval(), IMAGES, setting("fused"))
