"""The first two promises on real architectures: lossless, and the budget is met."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import prunegate
from prunegate.builders import Builder
from tests.conftest import IS_LONG, TORCHVISION_MODELS, random_masks, randomise


def build(name: str) -> nn.Module:
    model = Builder.parse(f"torchvision/{name}").zeroed()
    if name == "vgg16_bn":  # nine tenths of its weights, a gigabyte in float64, are of two hidden layers
        model.classifier[0] = nn.Linear(512 * 7 * 7, 256)
        model.classifier[3] = nn.Linear(256, 256)
        model.classifier[6] = nn.Linear(256, 1000)
    return randomise(model).double().eval()


DENSITIES = (0.8, 0.5, 0.2)
FRACTIONS = (0.75, 0.5, 0.25)


def cases(shares: tuple[float, ...]) -> list[tuple[str, float]]:
    """Each model with one of the shares, and each share with several models; every combination in the long profile."""
    return [
        (name, share)
        for number, name in enumerate(TORCHVISION_MODELS)
        for share in (shares if IS_LONG else [shares[number % len(shares)]])
    ]


@pytest.fixture(scope="module")
def dense(model: str) -> nn.Module:
    return build(model)


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def wrapped(dense: nn.Module, side: int) -> prunegate.GatedModel:
    return prunegate.wrap(dense, image(side))


@pytest.fixture(scope="module")
def side(model: str) -> int:
    """Of images, in pixels: small, yet every stage of these models has more than one position or pools it."""
    return 32 if model == "vgg16_bn" else 64


def image(side: int, batch: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def counted_macs(model: nn.Module, x: torch.Tensor) -> int:
    """MACs per sample by torch's own counter, which knows nothing of prunegate."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() // 2 // x.shape[0]


@pytest.mark.parametrize(("model", "density"), cases(DENSITIES), indirect=["model"], scope="module")
def test_compact_computes_what_the_gated_model_computed(
    dense: nn.Module, wrapped: prunegate.GatedModel, side: int, density: float
) -> None:
    masks = random_masks(wrapped.groups, density, seed=int(density * 10))
    wrapped.set_masks(masks)
    x = image(side, batch=3, seed=7)  # another batch size and other values than those traced
    with torch.no_grad():
        expected = wrapped.eval()(x)
        result = prunegate.compact(wrapped)
        found = result.model.eval()(x)
    assert type(result.model) is type(dense)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-9
    # The masks did something: the gated outputs are not the dense ones.
    with torch.no_grad():
        assert float((dense(x) - expected).abs().max()) > 1e-6
    before, after = dict(dense.named_parameters()), dict(result.model.named_parameters())
    assert before.keys() == after.keys()
    for group in wrapped.groups:
        cut = [m.tensor for m in group.members if m.tensor in before]
        if not masks[group.name].all():
            assert sum(after[t].numel() for t in cut) < sum(before[t].numel() for t in cut), group.name


@pytest.mark.parametrize(("model", "fraction"), cases(FRACTIONS), indirect=["model"], scope="module")
def test_hardened_model_meets_the_budget_when_counted(
    dense: nn.Module, wrapped: prunegate.GatedModel, side: int, fraction: float
) -> None:
    wrapped.release_masks()
    generator = torch.Generator().manual_seed(int(fraction * 100))
    with torch.no_grad():
        wrapped.gates.logits.copy_(torch.randn(wrapped.gates.logits.shape, generator=generator))
    budget = prunegate.Budget("macs", fraction=fraction)
    wrapped.harden(budget)
    x = image(side)
    dense_macs = counted_macs(dense, x)
    assert dense_macs == wrapped.dense_cost("macs")
    result = prunegate.compact(wrapped)
    macs = counted_macs(result.model.eval(), x)
    assert macs == wrapped.realised_cost("macs")
    assert sum(p.numel() for p in result.model.parameters()) == wrapped.realised_cost("params")
    assert macs <= fraction * dense_macs
    assert macs >= 0.99 * fraction * dense_macs


@pytest.mark.parametrize("round_to", [4, 8])
def test_round_to_keeps_multiples_and_the_budget(round_to: int) -> None:
    gated = prunegate.wrap(build("resnet18"), image(64), round_to=round_to)
    gated.harden(("macs", gated.dense_cost() // 2))
    for group in gated.groups:
        kept = int(gated.masks()[group.name].sum())
        assert kept % round_to == 0 or kept == group.num_units
    assert 0.49 * gated.dense_cost() <= gated.realised_cost() <= 0.5 * gated.dense_cost()
