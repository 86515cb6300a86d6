"""Estimators of the gradient, against exact gradients and against the papers' own formulas."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from prunegate.gates import ESTIMATORS
from prunegate.gates.estimators import DETERMINISTIC

DRAWN = sorted(set(ESTIMATORS) - DETERMINISTIC)
COUPLING = torch.tensor([[0.6, -1.1, 0.4], [0.2, 0.9, -0.7], [-0.3, 0.5, 0.8]], dtype=torch.float64)
OFFSET = torch.tensor([0.3, -0.4, 0.9], dtype=torch.float64)


def loss(mask: torch.Tensor) -> torch.Tensor:
    """A quadratic with couplings, whose mean over all masks is known by counting them."""
    return (mask @ COUPLING @ mask) + OFFSET @ mask


def exact_gradient(logits: torch.Tensor) -> torch.Tensor:
    logits = logits.detach().clone().requires_grad_()
    keep = torch.sigmoid(logits)
    mean = torch.zeros((), dtype=torch.float64)
    for bits in product((0.0, 1.0), repeat=logits.numel()):
        mask = torch.tensor(bits, dtype=torch.float64)
        mean = mean + torch.where(mask > 0, keep, 1.0 - keep).prod() * loss(mask)
    (gradient,) = torch.autograd.grad(mean, logits)
    return gradient


def estimates(name: str, logits: torch.Tensor, tau: float, count: int) -> torch.Tensor:
    """``count`` estimates of the gradient, shape (count, units)."""
    generator = torch.Generator().manual_seed(5)
    found = []
    for _ in range(count):
        leaf = logits.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(ESTIMATORS[name](leaf, tau, generator)), leaf)
        found.append(gradient)
    return torch.stack(found)


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_masks_are_exactly_zero_or_one_and_every_logit_can_have_a_gradient(name: str, dtype: torch.dtype) -> None:
    logits = torch.linspace(-2.0, 2.0, 200).to(dtype).requires_grad_()
    mask = ESTIMATORS[name](logits, 1.0, torch.Generator().manual_seed(0))
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    mask.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    clipped = name == "hard_concrete"  # no gradient where the stretched draw is saturated
    assert (logits.grad != 0).float().mean() > (0.3 if clipped else 0.99)


@pytest.mark.parametrize("name", DRAWN)
def test_units_stay_with_the_sigmoid_of_their_logit(name: str) -> None:
    """Each of five means over 40,000 draws within 4.9 standard errors: significance 1e-6 each."""
    logits = torch.tensor([-3.0, -0.5, 0.0, 1.0, 2.5])
    generator = torch.Generator().manual_seed(2)
    mean = ESTIMATORS[name](logits.repeat(40_000), 0.5, generator).reshape(-1, 5).mean(dim=0)
    keep = torch.sigmoid(logits)
    assert ((mean - keep).abs() < 4.9 * (keep * (1 - keep) / 40_000).sqrt()).all()


def test_reinmax_has_the_papers_gradient() -> None:
    """2 q(1 − q) − p(1 − p)/2 with q = (d + sigmoid(l/tau))/2, for both draws."""
    logits = torch.tensor([0.7, 0.7, -1.2], dtype=torch.float64, requires_grad=True)
    mask = ESTIMATORS["reinmax"](logits, 1.5, torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(mask.sum(), logits)
    p = torch.sigmoid(logits)
    q = (mask + torch.sigmoid(logits / 1.5)) / 2
    assert torch.allclose(gradient, (2 * q * (1 - q) - p * (1 - p) / 2).detach(), atol=1e-12)


def test_reinmax_is_unbiased_where_the_paper_proves_it() -> None:
    """One unit and a quadratic loss, tau 1: the mean over the two draws is the exact gradient."""
    for value in (-1.5, 0.3, 2.0):
        p = torch.sigmoid(torch.tensor(value, dtype=torch.float64))
        means = torch.zeros((), dtype=torch.float64)
        for d in (0.0, 1.0):
            q = (d + p) / 2
            slope = 2 * 1.7 * d - 0.4  # of 1.7 m² − 0.4 m
            means += (p if d else 1 - p) * slope * (2 * q * (1 - q) - p * (1 - p) / 2)
        assert math.isclose(float(means), float((1.7 - 0.4) * p * (1 - p)), rel_tol=1e-12)


def test_gumbel_rao_has_the_mean_of_gumbel_and_less_variance() -> None:
    logits = torch.tensor([0.5, -0.8, 1.2], dtype=torch.float64)
    plain, averaged = (estimates(name, logits, 0.5, 6000) for name in ("gumbel", "gumbel_rao"))
    error = (plain.var(dim=0) / 6000 + averaged.var(dim=0) / 6000).sqrt()
    assert ((plain.mean(dim=0) - averaged.mean(dim=0)).abs() < 4.9 * error).all()
    assert (averaged.var(dim=0) < plain.var(dim=0)).all()


@pytest.mark.parametrize("name", ["bernoulli", "reinmax", "gumbel"])
def test_estimates_point_where_the_exact_gradient_does(name: str) -> None:
    logits = torch.tensor([0.5, -0.8, 1.2], dtype=torch.float64)
    mean, exact = estimates(name, logits, 1.0, 4000).mean(dim=0), exact_gradient(logits)
    assert torch.nn.functional.cosine_similarity(mean, exact, dim=0) > 0.9


def test_one_seed_gives_one_mask() -> None:
    logits = torch.zeros(100)
    for name in ESTIMATORS:
        first, second = (ESTIMATORS[name](logits, 1.0, torch.Generator().manual_seed(9)) for _ in range(2))
        assert torch.equal(first, second)


def test_without_noise_the_positive_logits_stay() -> None:
    logits = torch.tensor([-0.1, 0.1, 3.0])
    assert ESTIMATORS["sigmoid"](logits, 1.0, None).tolist() == [0.0, 1.0, 1.0]
