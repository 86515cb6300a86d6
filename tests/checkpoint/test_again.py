"""Compact models can be pruned again, saved again, applied to other checkpoints, and loaded in other ways."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

import prunegate
from prunegate.builders import Builder
from prunegate.checkpoint import read_document
from prunegate.errors import CheckpointError
from tests.checkpoint.models import compacted, compacted_once, outputs_of, rewritten
from tests.conftest import SmallNet, random_masks, randomise


def pruned_again(model: nn.Module, x: torch.Tensor, backend: str) -> prunegate.Compaction:
    gated = prunegate.wrap(model, x, backend=backend)
    gated.set_masks(random_masks(gated.groups, 0.6, 1))
    return prunegate.compact(gated)


@pytest.mark.parametrize("between", ["load", "deepcopy", "nothing"])
@pytest.mark.parametrize(
    ("name", "size", "first", "second"),
    [
        ("timm/test_resnet", 64, "auto", "auto"),
        ("timm/test_vit", 160, "auto", "auto"),
        ("timm/test_resnet", 64, "graph", "graph"),
        ("SmallNet", 16, "module", "graph"),
    ],
)
def test_plans_compose(tmp_path: Path, name: str, size: int, first: str, second: str, between: str) -> None:
    once, x = compacted_once(name, size, first)
    own = SmallNet if name == "SmallNet" else None
    model = once.model
    if between == "load":
        once.save(tmp_path / "once.safetensors")
        model = prunegate.load(tmp_path / "once.safetensors", model=own)
    elif between == "deepcopy":
        model = copy.deepcopy(model)
    twice = pruned_again(model, x, second)
    file = tmp_path / "twice.safetensors"
    twice.save(file)
    loaded = prunegate.load(file, model=own, verify=True)
    assert all(torch.equal(a, b) for a, b in zip(outputs_of(loaded, x), outputs_of(twice.model, x), strict=True))
    document = read_document(file)
    assert len(document.steps) == 2
    for metric in ("macs", "params"):
        assert document.costs[metric]["dense"] == once.costs[metric]["dense"]
        assert document.costs[metric]["compact"] < once.costs[metric]["compact"]


def test_plan_cuts_another_dense_checkpoint_alike(tmp_path: Path) -> None:
    result, x = compacted_once("timm/test_resnet", 64, "auto")
    file = tmp_path / "c.safetensors"
    result.save(file)
    other = randomise(Builder.parse("timm/test_resnet").build(), seed=5).eval()
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    plan = prunegate.load_plan(file)
    compact = plan.apply(other)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())
    gated = prunegate.wrap(other, x)
    gated.set_masks(random_masks(gated.groups, 0.5, 0))  # the masks of the first
    torch.testing.assert_close(compact.eval()(x), gated.eval()(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(CheckpointError, match=r"c.safetensors: steps\[0\].plan: .*made for another model"):
        plan.apply(Builder.parse("timm/test_convnext").build())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_device_and_dtype_are_those_asked_for(tmp_path: Path, dtype: torch.dtype) -> None:
    result, x = compacted_once("timm/test_resnet", 64, "auto")
    result.save(tmp_path / "c.safetensors")
    loaded = prunegate.load(tmp_path / "c.safetensors", device="cpu", dtype=dtype)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert loaded(x.to(dtype)).dtype == dtype


def test_half_precision_weights_are_saved_as_they_are(tmp_path: Path) -> None:
    result, x = compacted("timm/test_resnet")
    result.model.to(torch.bfloat16)
    result.save(tmp_path / "c.safetensors")
    loaded = prunegate.load(tmp_path / "c.safetensors")
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded(x.bfloat16()), result.model.eval()(x.bfloat16()))


def test_what_fits_is_loaded_without_strict(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class WithExtra(SmallNet):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Linear(2, 2)

    result, x = compacted("SmallNet", 16)
    result.save(tmp_path / "c.safetensors")
    model = WithExtra()
    extra = model.extra.weight.detach().clone()
    with pytest.raises(CheckpointError, match=r"found 0 that .* 2 missing \(extra.bias, extra.weight\).*strict=False"):
        prunegate.load(tmp_path / "c.safetensors", model=WithExtra)
    with caplog.at_level(logging.WARNING):
        loaded = prunegate.load(tmp_path / "c.safetensors", model=model, strict=False)
    assert "2 missing" in caplog.text
    assert torch.equal(loaded(x), result.model.eval()(x))
    assert torch.equal(loaded.extra.weight, extra)


def test_model_that_computes_something_else_is_noticed_by_verify(tmp_path: Path) -> None:
    class Other(SmallNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 1.0001

    result, _ = compacted("SmallNet", 16)
    file = tmp_path / "c.safetensors"
    result.save(file)
    prunegate.load(file, model=Other)
    with pytest.raises(CheckpointError, match=r"fingerprint: the model computes something else here .* by 0\.0001"):
        prunegate.load(file, model=Other, verify=True)
    with pytest.raises(CheckpointError, match="fingerprint: there is none"):
        prunegate.load(rewritten(file, lambda d: d.update(fingerprint=None)), model=SmallNet, verify=True)


def test_something_else_than_a_model_is_refused(tmp_path: Path) -> None:
    result, _ = compacted("SmallNet", 16)
    result.save(tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match=r"model: made a dict, expected a dense nn.Module"):
        prunegate.load(tmp_path / "c.safetensors", model=dict)
