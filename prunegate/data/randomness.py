"""Random numbers that depend on what they are drawn for, and on nothing that was drawn before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

# What the numbers are for. It is part of the key: a sample's crop is not to follow a batch's mixing.
SAMPLE, MIXING, CHECK = 1, 2, 3


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Within the block python's, numpy's and torch's global generators follow from ``key`` alone.

    Transforms draw from any of them. Their states are as before afterwards. Those of accelerators are left alone.

    Args:
        key: What the block is for and where it is, such as (SAMPLE, seed, epoch, index); none negative.
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
    """What shuffles an epoch."""
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)
