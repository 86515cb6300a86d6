"""Estimators: how a hard mask is drawn, and with which gradient.

All share one interface. They take the logits (log-odds of keeping), shape (units,), the temperature tau and a
generator, and return a mask of exactly 0.0 and 1.0 in float32 or wider, with a gradient to the logits. All except
`sigmoid_straight_through` draw from the same distribution, in which a unit is kept with probability sigmoid(logit), so
expected costs, hardening and `compact` do not depend on the choice. Gradients differ in bias and variance:
``tools/bench/gradients.py`` measures both against the exact gradient.

With classes *keep* and *drop*, logits l₁ and l₀ and Gumbel noise g₁ and g₀, the relaxed weight of *keep* is
softmax((l + g) / tau)₁ = sigmoid((l₁ − l₀ + g₁ − g₀) / tau). The difference of two Gumbel draws is logistic, so
one logit l = l₁ − l₀ and one draw log u − log(1 − u) are equivalent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch

from prunegate.gates.relaxation import (
    Source,
    logistic_noise,
    logistic_quantile,
    soft_mask,
    straight_through,
    uniform_noise,
    widened,
)

# A number, or 0-d on the logits' device, so that a schedule can change it without recompilation.
Tau: TypeAlias = "float | torch.Tensor"
# (logits, tau, generator) → mask
Estimator: TypeAlias = Callable[[torch.Tensor, Tau, Source], torch.Tensor]

# Number of draws, all consistent with the mask, that Gumbel-Rao averages over.
RAO_SAMPLES = 16
# How far the hard concrete is stretched beyond 0 and 1 (γ = −0.1 and ζ = 1.1 in the paper).
_STRETCH = 0.1


def gumbel_straight_through(logits: torch.Tensor, tau: Tau, generator: Source) -> torch.Tensor:
    """A draw of the Gumbel-softmax, hard, with the gradient of the same draw at temperature tau.

    Reference: Jang, Gu and Poole, 2017, arXiv:1611.01144, section 2.2.
    """
    noise = logistic_noise(logits.numel(), generator, logits.device)
    wide = widened(logits)
    return straight_through(_hard(wide + noise), soft_mask(wide, noise, tau))


def bernoulli_straight_through(logits: torch.Tensor, tau: Tau, generator: Source) -> torch.Tensor:
    """A Bernoulli draw with the gradient of its mean, ``sigmoid(logits)``; tau is not used.

    Reference: Bengio, Léonard and Courville, 2013, arXiv:1308.3432, section 4.
    """
    noise = logistic_noise(logits.numel(), generator, logits.device)
    wide = widened(logits)
    return straight_through(_hard(wide + noise), torch.sigmoid(wide))


def reinmax(logits: torch.Tensor, tau: Tau, generator: Source) -> torch.Tensor:
    """A Bernoulli draw d with a second-order gradient: 2 q(1 − q) − p(1 − p) / 2, by Heun's method.

    Here p = sigmoid(l), and q = (d + sigmoid(l / tau)) / 2. At tau 1 the estimate is exact for quadratic losses of
    one unit.

    Reference: Liu et al., "Bridging Discrete and Backpropagation", 2023, arXiv:2304.08612, algorithm 2.
    """
    noise = logistic_noise(logits.numel(), generator, logits.device)
    wide = widened(logits)
    hard = _hard(wide + noise)
    middle = (0.5 * (hard + torch.sigmoid(wide / tau))).detach()
    soft = 2.0 * torch.sigmoid(_shifted(wide, middle)) - 0.5 * torch.sigmoid(wide)
    return straight_through(hard, soft)


def gumbel_rao(logits: torch.Tensor, tau: Tau, generator: Source) -> torch.Tensor:
    """A draw with the mean gradient of `RAO_SAMPLES` relaxed draws that would have given the same mask.

    The mean of the straight-through gradient is unchanged, its variance is lower.

    Reference: Paulus, Maddison and Krause, "Rao-Blackwellizing the Straight-Through Gumbel-Softmax Gradient
    Estimator", 2021, arXiv:2010.04838, equation 9.
    """
    count = logits.numel()
    wide = widened(logits)
    hard = _hard(wide + logistic_noise(count, generator, logits.device))
    uniform = uniform_noise(RAO_SAMPLES, count, source=generator, device=logits.device)
    with torch.no_grad():
        # The range of the uniform draw that leads to this mask: above sigmoid(−l) for kept units.
        drop = torch.sigmoid(-wide)
        inside = torch.where(hard > 0, drop + uniform * (1.0 - drop), uniform * drop)
        noise = logistic_quantile(inside)
    return straight_through(hard, soft_mask(wide, noise, tau).mean(dim=0))


def hard_concrete(logits: torch.Tensor, tau: Tau, generator: Source) -> torch.Tensor:
    """A Gumbel draw with the gradient of the stretched and clipped draw, which is zero where it is saturated.

    The original trains with values between 0 and 1, which slicing cannot reproduce. Here the mask is hard (the stretch
    is symmetric, so both agree on which side of one half a draw lies), and hardening loses nothing.

    Reference: Louizos, Welling and Kingma, 2018, arXiv:1712.01312, equations 10 to 12.
    """
    noise = logistic_noise(logits.numel(), generator, logits.device)
    wide = widened(logits)
    stretched = soft_mask(wide, noise, tau) * (1.0 + 2.0 * _STRETCH) - _STRETCH
    return straight_through(_hard(wide + noise), stretched.clamp(0.0, 1.0))


def sigmoid_straight_through(logits: torch.Tensor, tau: Tau, generator: Source) -> torch.Tensor:
    """Without a draw: units with a positive logit are kept; the gradient is that of ``sigmoid(logits / tau)``."""
    wide = widened(logits)
    return straight_through(_hard(wide), torch.sigmoid(wide / tau))


ESTIMATORS: Mapping[str, Estimator] = {
    "gumbel": gumbel_straight_through,
    "bernoulli": bernoulli_straight_through,
    "reinmax": reinmax,
    "gumbel_rao": gumbel_rao,
    "hard_concrete": hard_concrete,
    "sigmoid": sigmoid_straight_through,
}
# Estimators that draw nothing: their expected mask is their mask.
DETERMINISTIC = frozenset({"sigmoid"})


def _hard(perturbed: torch.Tensor) -> torch.Tensor:
    return (perturbed.detach() > 0).to(perturbed.dtype)


def _shifted(logits: torch.Tensor, probability: torch.Tensor) -> torch.Tensor:
    """The log-odds of ``probability``, with the gradient of the logits."""
    return (torch.logit(probability, eps=1e-7) - logits).detach() + logits
