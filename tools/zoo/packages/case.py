"""A model of some package, and what it is called with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class PackageCase:
    """How one model is built and called.

    Attributes:
        build: Makes it from a small configuration, without downloads.
        inputs: Makes inputs for so many samples at a size (side of an image, length of a sequence).
        size: Where it is wrapped.
        other: Another size, or None for a model that takes one alone.
        selects: It picks by what it computes (detectors), so rounding may change what comes out.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int, int], Any]
    size: int
    other: int | None = None
    selects: bool = False


def image(channels: int = 3) -> Callable[[int, int], torch.Tensor]:
    """Square images."""
    return lambda batch, size: torch.randn(batch, channels, size, size)


def volume(channels: int = 1) -> Callable[[int, int], torch.Tensor]:
    """Cubes."""
    return lambda batch, size: torch.randn(batch, channels, size, size, size)


def sequence(channels: int) -> Callable[[int, int], torch.Tensor]:
    """Sequences with their channels first."""
    return lambda batch, size: torch.randn(batch, channels, size)


def series(channels: int) -> Callable[[int, int], torch.Tensor]:
    """Sequences with their channels last."""
    return lambda batch, size: torch.randn(batch, size, channels)


def pixels(batch: int, size: int) -> dict[str, torch.Tensor]:
    """Images, as the models of transformers take them."""
    return {"pixel_values": torch.randn(batch, 3, size, size)}


def words(batch: int, length: int) -> dict[str, torch.Tensor]:
    """Token ids, as the models of transformers take them."""
    return {"input_ids": token_ids(batch, length)}


def token_ids(batch: int, length: int) -> torch.Tensor:
    """Token ids that are none of the usual special ones, of a vocabulary of 99."""
    return torch.randint(5, 90, (batch, length))
