"""Uniform noise as a function of seed, step and unit, computed on the device that uses it.

The state is only two numbers. A generator's state, in contrast, is on the host, differs between devices and cannot be
compiled. The function is a hash of 32-bit integers; all products are below 2⁶³, so every device computes the same bits.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import nn

from prunegate.gates.constants import Constants

_LOW = 0xFFFFFFFF
# Multipliers of a two-round mixing function in which every bit depends on all bits of the argument, published by
# skeeto/hash-prospector, which searches for low-bias functions.
_FIRST, _SECOND = 0x21F0AAAD, 0xD35A2D97 - (1 << 32)  # the same modulo 2³², and small enough a factor
_STRIDE = 0x9E3779B1  # between draws of one step: 2³² divided by the golden ratio


# All instances of this process: recomputation restores the noise of the forward pass.
SOURCES: weakref.WeakSet[CounterNoise] = weakref.WeakSet()


class CounterNoise(nn.Module):
    """Draws of the uniform distribution for every unit of a model.

    A seed gives the same result on every device and after every restart, as the state is a buffer. Distributed
    processes draw their own noise, which depends on their rank.

    Attributes:
        state: Two words of the seed and the number of steps, int64, shape (3,).

    Reference:
        Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011, for generators that are functions of a
        counter.
    """

    def __init__(self, num_units: int, seed: int = 0) -> None:
        super().__init__()
        self._calls = 0
        self.register_buffer("state", torch.zeros(3, dtype=torch.int64))
        self.state: torch.Tensor
        units = _mixed(torch.arange(num_units) + 1)
        self._constants = Constants(advance=np.array([0, 0, 1]), units=units.numpy())
        self.manual_seed(seed)
        SOURCES.add(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        SOURCES.add(self)

    def _apply(self, fn: Any, recurse: bool = True) -> CounterNoise:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._constants.at(self.state.device)
        return self

    @torch.no_grad()
    def manual_seed(self, seed: int) -> CounterNoise:
        """Start the noise of ``seed``, an integer below 2⁶⁴, at step 0."""
        words = [seed & _LOW, (seed >> 32) & _LOW, 0]
        self.state.copy_(torch.tensor(words))
        return self

    def get_state(self) -> torch.Tensor:
        """A copy of the state, int64, shape (3,)."""
        return self.state.clone()

    @torch.no_grad()
    def set_state(self, state: torch.Tensor) -> None:
        """Restore a state from `get_state`."""
        self.state.copy_(state)

    @torch.no_grad()
    def advance(self) -> None:
        """Advance to the noise of the next step."""
        self.state += self._constants.at(self.state.device)["advance"]
        self._calls = 0

    @torch.no_grad()
    def uniform(self, *shape: int) -> torch.Tensor:
        """Draws in [0, 1), float32; the last dimension is the units. Each call within a step gives different draws."""
        first, second, step = self.state.unbind()
        key = (first + _mixed((step + _STRIDE * self._calls) & _LOW)) & _LOW
        key = _mixed(key ^ _rank_word()) ^ second
        self._calls += 1
        units = self._constants.at(self.state.device)["units"]
        for size in reversed(shape[:-1]):
            row = torch.arange(size, device=units.device).reshape(-1, *[1] * units.dim())
            units = _mixed((units + _STRIDE * (row + 1)) & _LOW)
        return (_mixed(units ^ key) >> 8).float() * 2.0**-24


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """A pseudo-random permutation of the integers below 2³²."""
    x = ((x ^ (x >> 16)) * _FIRST) & _LOW
    x = ((x ^ (x >> 15)) * _SECOND) & _LOW
    return x ^ (x >> 15)


def _rank_word() -> int:
    """A word that depends on this process's rank; 0 for a single process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return (torch.distributed.get_rank() * _STRIDE) & _LOW
    return 0
