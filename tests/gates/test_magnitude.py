"""Estimates of units' importance from the norms of their weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import prunegate
from prunegate.gates import standardised_magnitudes
from prunegate.gates.gates import LOGIT_LIMIT


@pytest.fixture
def gated() -> prunegate.GatedModel:
    torch.manual_seed(0)
    return prunegate.wrap(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.zeros(2, 3))


def test_scores_are_standardised_norms_of_what_makes_and_reads_a_unit(gated: prunegate.GatedModel) -> None:
    first, second = gated.dense_copy()[0].weight, gated.dense_copy()[2].weight  # type: ignore[index]
    makes, reads = first.detach().square().sum(1), second.detach().square().sum(0)
    norms = (makes / makes.mean() + reads / reads.mean()).sqrt()
    torch.testing.assert_close(gated.magnitudes(), (norms - norms.mean()) / norms.std())


def test_scores_do_not_depend_on_the_scale_of_a_layer(gated: prunegate.GatedModel) -> None:
    before = gated.magnitudes()
    with torch.no_grad():
        for parameter in gated.weight_parameters():
            parameter.mul_(1000.0)
    torch.testing.assert_close(gated.magnitudes(), before)


def test_units_that_are_all_alike_score_zero(gated: prunegate.GatedModel) -> None:
    tensors = {"0.weight": torch.ones(4, 3), "2.weight": torch.ones(2, 4)}
    assert standardised_magnitudes(tensors, gated.groups).tolist() == [0.0] * 4


def test_every_unit_of_a_model_with_convolutions_and_shared_channels_has_a_finite_score(small_net: nn.Module) -> None:
    gated = prunegate.wrap(small_net.float(), torch.randn(2, 3, 16, 16))
    scores = gated.magnitudes()
    assert scores.shape == gated.gates.logits.shape
    for group in gated.groups:
        assert scores[group.units].mean().abs() < 1e-5
        assert scores[group.units].std() == pytest.approx(1.0, abs=1e-3)


def test_gates_start_at_the_scores_within_their_limits(gated: prunegate.GatedModel) -> None:
    scores = torch.tensor([-1.0, -0.5, 0.5, 1.0])
    gated.gates.start_at(0.9, scores, spread=2.0)
    torch.testing.assert_close(gated.gates.logits.detach(), math.log(9.0) + 2.0 * scores)
    gated.gates.start_at(0.9, scores, spread=100.0)
    assert gated.gates.logits.detach().abs().max() == pytest.approx(LOGIT_LIMIT)
