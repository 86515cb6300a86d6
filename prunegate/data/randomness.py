"""Random numbers that depend only on their purpose, not on earlier draws."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

# The purpose of the numbers. It is part of the key, so that a sample's crop is independent of a batch's mixing.
SAMPLE, MIXING, CHECK = 1, 2, 3


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Within the block, Python's, NumPy's and torch's global generators depend only on ``key``.

    Transforms draw from any of them. Their states are restored afterwards. Generators of accelerators are not changed.

    Args:
        key: The purpose and position of the block, such as (SAMPLE, seed, epoch, index); not negative.
    """
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    for_python, for_numpy, for_torch = np.random.SeedSequence(key).generate_state(3).tolist()
    random.seed(for_python)
    np.random.seed(for_numpy)
    torch.default_generator.manual_seed(for_torch)  # `torch.manual_seed` would reseed every GPU too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


def order_of(seed: int, epoch: int) -> torch.Generator:
    """The generator that shuffles an epoch."""
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)
