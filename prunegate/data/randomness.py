"""Random numbers that depend only on their purpose, not on earlier draws."""

from __future__ import annotations

import torch

# The purpose of the numbers, the first in a key such as (SAMPLE, seed, epoch, index) for `prunegate.seeding.seeded`: a
# sample's crop is independent of a batch's mixing.
SAMPLE, MIXING, CHECK = 1, 2, 3


def order_of(seed: int, epoch: int) -> torch.Generator:
    """The generator that shuffles an epoch."""
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)
