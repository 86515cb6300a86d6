"""Seeding every global generator for a while."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_torch(seed: int) -> None:
    """Seed torch's generators on all devices, as `torch.manual_seed` does.

    Where there is no accelerator, that one notes for each kind of them the stack it is called from, in case one is used
    later: a millisecond in deep code, and runs that are compared reseed thousands of times.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Within the block, Python's, NumPy's and torch's global generators depend only on ``key``.

    A user's transforms and models draw from any of them. Their states are restored afterwards. Generators of
    accelerators are not changed.

    Args:
        key: Numbers that say what the block is for, not negative.
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
