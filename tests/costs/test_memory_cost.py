"""Memory of weights and activations, against what torch allocates in the compact model."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

import prunegate
from prunegate.latency import random_subnetwork
from prunegate.measuring import peak_activation_bytes, weight_bytes
from prunegate.wrapping import candidate


def wrapped(model: nn.Module, size: int = 64) -> prunegate.GatedModel:
    return prunegate.wrap(model.eval(), torch.randn(2, 3, size, size))


def measured(model: nn.Module, batch: int = 1, size: int = 64) -> float:
    x = torch.randn(batch, 3, size, size)
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert weights <= weight_bytes(model)
    return (weights + peak_activation_bytes(lambda: model(x))) / 1e6


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "convnext_tiny"])
def test_memory_is_what_the_compact_model_takes(name: str) -> None:
    torch.manual_seed(0)
    gated = wrapped(torchvision.models.get_model(name))
    assert gated.dense_cost("memory_mb") == pytest.approx(measured(gated.dense_copy()), rel=1e-6)
    for seed in range(2):
        keep = random_subnetwork(gated, np.random.default_rng(seed))
        assert gated.cost("memory_mb").exact(keep) == pytest.approx(measured(candidate(gated, keep)), rel=1e-6)


def test_memory_grows_with_the_batch_size_of_latency() -> None:
    gated = wrapped(torchvision.models.resnet18())

    class Fixed:
        batch_size = 8

    one = gated.dense_cost("memory_mb")
    gated.latency = Fixed()
    assert gated.dense_cost("memory_mb") == pytest.approx(measured(gated.dense_copy(), 8), rel=1e-6)
    assert one < gated.dense_cost("memory_mb")


def test_budget_of_memory_is_met_and_its_gradient_closes_gates() -> None:
    gated = wrapped(timm.create_model("test_resnet"), 32)
    gated.gates.start_at(0.9, gated.magnitudes(), 1.0)
    gated.expected_cost("memory_mb").backward()
    assert (gated.gates.logits.grad >= 0).all()
    assert gated.gates.logits.grad.any()
    gated.harden(prunegate.Budget("memory_mb", 0.5))
    share = gated.realised_cost("memory_mb") / gated.dense_cost("memory_mb")
    assert 0.49 <= share <= 0.5


def test_expected_memory_of_open_gates_is_the_dense_one() -> None:
    gated = wrapped(torchvision.models.resnet18())
    ones = torch.ones(gated.analysis.num_units)
    cost = gated.cost("memory_mb")
    assert cost.expected(ones).item() == pytest.approx(cost.dense())
    assert cost.by_nest(ones.numpy().astype(bool)).max() <= cost.dense()
