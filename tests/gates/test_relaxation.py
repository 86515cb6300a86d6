"""The gate's relaxation against torch's own Gumbel-softmax."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from prunegate.gates import logistic_noise, soft_mask, straight_through


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_straight_through_is_exactly_zero_or_one(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    soft = torch.rand(100_000, generator=generator).to(dtype)
    hard = (torch.rand(100_000, generator=generator) < 0.5).to(dtype)
    mask = straight_through(hard, soft)
    assert mask.dtype == dtype
    assert torch.equal(mask, hard)
    assert set(mask.unique().tolist()) == {0.0, 1.0}


def test_noise_is_finite_over_a_million_draws_at_small_tau() -> None:
    noise = logistic_noise(1_000_000, torch.Generator().manual_seed(0))
    logits = torch.linspace(-4.6, 4.6, 1_000_000, requires_grad=True)
    soft = soft_mask(logits, noise, tau=0.05)
    soft.sum().backward()
    assert torch.isfinite(noise).all()
    assert torch.isfinite(soft).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_noise_is_finite_at_the_ends_of_the_uniform_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = torch.tensor([0.0, 2.0**-24, 1.0 - 2.0**-24])
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: ends.clone())
    noise = logistic_noise(3)
    assert torch.isfinite(noise).all()
    assert noise[0] < -16
    assert noise[2] > 16


def test_noise_follows_the_logistic_distribution() -> None:
    """Kolmogorov–Smirnov at significance 1e-4: critical value sqrt(−ln(α/2)/2)/sqrt(n)."""
    size = 200_000
    noise = logistic_noise(size, torch.Generator().manual_seed(3)).double().sort().values
    cumulative = torch.sigmoid(noise)
    steps = torch.arange(1, size + 1, dtype=torch.float64) / size
    distance = float(torch.maximum((cumulative - steps).abs(), (cumulative - steps + 1 / size).abs()).max())
    assert distance < math.sqrt(-math.log(1e-4 / 2) / 2) / math.sqrt(size)


@pytest.mark.parametrize("logit", [-2.0, 0.0, 0.7, 3.0])
@pytest.mark.parametrize("tau", [0.1, 0.66, 2.0])
def test_hard_masks_agree_with_gumbel_softmax_in_distribution(logit: float, tau: float) -> None:
    """Two-sample proportion test, |z| < 4.4: significance 1e-5 for each of the twelve cases."""
    size = 100_000
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(2)
    ours = float((soft_mask(torch.full((size,), logit), logistic_noise(size, generator), tau) > 0.5).float().mean())
    theirs = float(F.gumbel_softmax(torch.tensor([logit, 0.0]).expand(size, 2), tau=tau, hard=True)[:, 0].mean())
    pooled = (ours + theirs) / 2
    z = (ours - theirs) / math.sqrt(2 * pooled * (1 - pooled) / size)
    assert abs(z) < 4.4
    expected = 1 / (1 + math.exp(-logit))
    assert abs(ours - expected) / math.sqrt(expected * (1 - expected) / size) < 4.4


@pytest.mark.parametrize("tau", [0.1, 0.66, 2.0])
def test_value_and_gradient_agree_with_gumbel_softmax_on_shared_noise(
    tau: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 1000
    generator = torch.Generator().manual_seed(4)
    uniform = torch.rand((size, 2), generator=generator, dtype=torch.float64)
    # F.gumbel_softmax takes −log of an exponential draw as its Gumbel noise: hand it ours.
    exponential = -uniform.log()
    gumbel = -exponential.log()
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self, *args, **kwargs: self.copy_(exponential))

    two = torch.randn((size, 2), generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(size, generator=generator, dtype=torch.float64)
    theirs = F.gumbel_softmax(two, tau=tau, hard=True)[:, 0]
    (theirs * weight).sum().backward()

    logits = (two[:, 0] - two[:, 1]).detach().requires_grad_()
    noise = gumbel[:, 0] - gumbel[:, 1]
    soft = soft_mask(logits, noise, tau)
    ours = straight_through((soft > 0.5).double(), soft)
    (ours * weight).sum().backward()

    assert two.grad is not None
    assert logits.grad is not None
    torch.testing.assert_close(ours, theirs.round(), rtol=0, atol=0)
    torch.testing.assert_close(logits.grad, two.grad[:, 0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(logits.grad, -two.grad[:, 1], rtol=1e-9, atol=1e-12)
