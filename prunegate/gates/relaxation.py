"""Logistic noise, the relaxed mask it makes, and the hard mask that passes its gradient on.

Reference: Jang, Gu and Poole, "Categorical Reparameterization with Gumbel-Softmax", 2017, arXiv:1611.01144;
Maddison, Mnih and Teh, "The Concrete Distribution", 2017, arXiv:1611.00712.
"""

from __future__ import annotations

import torch


def logistic_noise(
    size: int, generator: torch.Generator | None = None, device: torch.device | None = None
) -> torch.Tensor:
    """Draws of the standard logistic distribution, float32, shape (size,).

    The uniform draw is kept half a step of float32 away from 0 and 1, so the noise is finite
    (within ±17.4) whatever tau it is divided by later.
    """
    on = generator.device if generator is not None else device
    uniform = torch.rand(size, generator=generator, device=on, dtype=torch.float32)
    return logistic_quantile(uniform).to(device or uniform.device)


def logistic_quantile(uniform: torch.Tensor) -> torch.Tensor:
    """Logistic draws from uniform ones, finite: log u − log(1 − u) with u half a step of float32 from 0 and 1."""
    log = uniform.clamp(2.0**-25, 1.0 - 2.0**-24).log_()
    return log - (-log.exp()).log1p_()


def widened(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32 where they are narrower."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def soft_mask(logits: torch.Tensor, noise: torch.Tensor, tau: float) -> torch.Tensor:
    """Relaxed masks in (0, 1): ``sigmoid((logits + noise) / tau)``, float32 or wider, in the logits' shape."""
    return torch.sigmoid((widened(logits) + noise) / tau)


def straight_through(hard: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
    """The hard mask's values with the soft mask's gradient.

    The order of the terms matters: ``soft − soft.detach()`` is exactly zero, so the sum is exactly the
    hard mask; ``hard + soft − soft.detach()`` would round twice.
    """
    return hard + (soft - soft.detach())
