"""Logistic noise, the relaxed mask made from it, and the hard mask that carries the relaxed mask's gradient.

Reference: Jang, Gu and Poole, "Categorical Reparameterization with Gumbel-Softmax", 2017, arXiv:1611.01144;
Maddison, Mnih and Teh, "The Concrete Distribution", 2017, arXiv:1611.00712.
"""

from __future__ import annotations

from typing import TypeAlias

import torch

from prunegate.gates.noise import CounterNoise

# The source of noise: the gates' own counter, or a torch generator (None is the global one).
Source: TypeAlias = "CounterNoise | torch.Generator | None"


def uniform_noise(*shape: int, source: Source = None, device: torch.device | None = None) -> torch.Tensor:
    """Draws in [0, 1), float32, on ``device``, by default the source's own."""
    if isinstance(source, CounterNoise):
        return source.uniform(*shape)
    on = source.device if source is not None else device
    drawn = torch.rand(*shape, generator=source, device=on, dtype=torch.float32)
    return drawn.to(device or drawn.device)


def logistic_noise(size: int, generator: Source = None, device: torch.device | None = None) -> torch.Tensor:
    """Draws of the standard logistic distribution, float32, shape (size,).

    The uniform draw is kept half a float32 step away from 0 and 1, so the noise is finite (within ±17.4), whatever tau
    it is divided by later.
    """
    return logistic_quantile(uniform_noise(size, source=generator, device=device))


def logistic_quantile(uniform: torch.Tensor) -> torch.Tensor:
    """Logistic draws from uniform ones, finite: log u − log(1 − u) with u at least half a float32 step from 0 and 1."""
    log = uniform.clamp(2.0**-25, 1.0 - 2.0**-24).log()
    return log - (-log.exp()).log1p()


def widened(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32 if they are narrower."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def soft_mask(logits: torch.Tensor, noise: torch.Tensor, tau: float | torch.Tensor) -> torch.Tensor:
    """Relaxed masks in (0, 1): ``sigmoid((logits + noise) / tau)``, float32 or wider, in the logits' shape."""
    return torch.sigmoid((widened(logits) + noise) / tau)


def straight_through(hard: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
    """The hard mask's values with the soft mask's gradient.

    The order of the terms matters: ``soft − soft.detach()`` is exactly zero, so the sum is exactly the
    hard mask; ``hard + soft − soft.detach()`` would round twice.
    """
    return hard + (soft - soft.detach())
