from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import nn

import prunegate
from prunegate.builders import Builder
from prunegate.report import Comparison, Latency, counted_macs


def net(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, width, 3, padding=1), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width * 25, 3)
    )


def macs(width: int) -> int:
    return 25 * 2 * 9 * width + width * 25 * 3


def params(width: int) -> int:
    return (2 * 9 * width + width) + 2 * width + (width * 25 * 3 + 3)


@pytest.mark.parametrize("width", [1, 4, 9])
def test_macs_are_counted_per_sample(width: int) -> None:
    model = net(width).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert counted_macs(model, (2, 5, 5)) == macs(width)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return Comparison.measure(net(8), net(4), (0.9, 0.875), (2, 5, 5), batch_sizes=(1, 3))


def test_both_models_are_measured_alike(comparison: Comparison) -> None:
    for figures, width in ((comparison.dense, 8), (comparison.compact, 4)):
        assert (figures.macs, figures.params) == (macs(width), params(width))
        assert [latency.batch_size for latency in figures.latencies] == [1, 3]
        assert all(latency.median_ms > 0 for latency in figures.latencies)
        # Four bytes for each number; running mean and variance, one int64 counter, and a header.
        numbers = 4 * (params(width) + 2 * width) + 8
        assert numbers < figures.file_bytes < numbers + 2048
    assert (comparison.dense.accuracy, comparison.compact.accuracy) == (0.9, 0.875)


def test_comparison_is_ready_for_json(comparison: Comparison) -> None:
    data = json.loads(json.dumps(comparison.as_dict()))
    assert data["compact"]["macs"] == macs(4)
    assert data["dense"]["latencies"][1]["batch_size"] == 3


def test_table_shows_every_figure(comparison: Comparison) -> None:
    out = io.StringIO()
    Console(file=out, width=110).print(comparison.table())
    rows = {line.split("│")[1].strip(): line for line in out.getvalue().splitlines() if line.startswith("│")}
    assert set(rows) == {
        "accuracy", "MACs per sample", "parameters", "file size", "latency, batch 1", "latency, batch 3"
    }  # fmt: skip
    assert "90.00%" in rows["accuracy"]
    assert "-2.50 points" in rows["accuracy"]
    assert f"{macs(8):,}" in rows["MACs per sample"]
    assert f"{macs(4) / macs(8):.4f}" in rows["MACs per sample"]
    assert "ms" in rows["latency, batch 3"]


@pytest.mark.parametrize("name", ["timm/test_vit", "torchvision/vit_b_32"])
def test_matrix_products_of_attention_are_counted(name: str) -> None:
    model = Builder.parse(name, {"img_size": 32, "patch_size": 8} if "timm" in name else {"image_size": 64}).build()
    size = 32 if "timm" in name else 64
    gated = prunegate.wrap(model, torch.zeros(2, 3, size, size))
    assert counted_macs(model, (3, size, size)) == gated.dense_cost("macs")


@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_a_ratio_of_times_that_are_not_steady_is_not_shown(comparison: Comparison, spread: float) -> None:
    figures = replace(comparison.dense, latencies=(Latency(1, 10.0, 0.1), Latency(3, 10.0, spread)))
    out = io.StringIO()
    Console(file=out, width=110).print(Comparison(figures, figures).table())
    rows = {line.split("│")[1].strip(): line for line in out.getvalue().splitlines() if line.startswith("│")}
    assert "1.00" in rows["latency, batch 1"]
    assert ("not steady" in rows["latency, batch 3"]) == (spread > 2)
    told = " ".join(out.getvalue().split())
    assert ("not steady: the times vary by more than 20% of their median" in told) == (spread > 2)


@pytest.mark.parametrize(
    ("compact_ms", "spread", "told"), [(5.0, 0.1, False), (9.9, 0.1, True), (12.0, 0.1, True), (12.0, 4.0, False)]
)
def test_a_compact_model_that_is_not_faster_is_named_with_the_remedy(
    comparison: Comparison, compact_ms: float, spread: float, told: bool
) -> None:
    dense = replace(comparison.dense, latencies=(Latency(1, 10.0, 0.1),))
    compact = replace(comparison.compact, latencies=(Latency(1, compact_ms, spread),))
    sentence = Comparison(dense, compact).not_faster()
    assert (sentence is not None) == told
    if sentence is not None:
        assert f"at batch 1 the compact model takes {compact_ms:.3g} ms and the dense one 10 ms" in sentence
        assert "Set gates.round_to: auto" in sentence
