"""Random shifts and flips of images in memory, a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from prunegate.data.moving import moved


class Moves(NamedTuple):
    """Random shifts and flips of images.

    Attributes:
        shift: Rows and columns of each image, (n, 2), or None for no shifts.
        mirrored: Which images are flipped, bool, (n, 1), or None for none.
    """

    shift: torch.Tensor | None
    mirrored: torch.Tensor | None

    @classmethod
    def draw(cls, count: int, height: int, kind: str, generator: torch.Generator) -> Moves:
        """Draw shifts of up to an eighth of the side per image, and flips for ``shift_flip``; on the CPU."""
        if kind == "none":
            return cls(None, None)
        shift = torch.randint(0, 2 * _reach(height) + 1, (count, 2), generator=generator)
        return cls(shift, torch.rand(count, 1, generator=generator) < 0.5 if kind == "shift_flip" else None)

    @classmethod
    def joined(cls, parts: Sequence[Moves]) -> Moves:
        """The moves of several batches, concatenated."""
        shifts = [part.shift for part in parts if part.shift is not None]
        mirrored = [part.mirrored for part in parts if part.mirrored is not None]
        return cls(torch.cat(shifts) if shifts else None, torch.cat(mirrored) if mirrored else None)

    def to(self, device: torch.device) -> Moves:
        return Moves(*(None if part is None else moved(part, device) for part in self))

    def part(self, which: slice) -> Moves:
        """The moves of some of the images."""
        return Moves(*(None if part is None else part[which] for part in self))

    def of(self, images: torch.Tensor) -> torch.Tensor:
        """The moved images; their number and device have to match."""
        if self.shift is None:
            return images
        count, _, height, width = images.shape
        device = images.device
        padded = F.pad(images, [_reach(height)] * 4, mode="replicate")
        rows = self.shift[:, :1] + torch.arange(height, device=device)
        columns = self.shift[:, 1:] + torch.arange(width, device=device)
        if self.mirrored is not None:
            columns = torch.where(self.mirrored, columns.flip(1), columns)
        index = torch.arange(count, device=device)[:, None, None]
        shifted = padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        # `contiguous()` would not change images of one channel, whose strides torch treats as channels-last. In that
        # layout, oneDNN's gradient of a strided 1 × 1 convolution with few channels, which pruning can produce, writes
        # out of bounds (https://github.com/uxlfoundation/oneDNN/issues/6035).
        return shifted.clone(memory_format=torch.contiguous_format)


def _reach(height: int) -> int:
    return max(1, height // 8)


def augmented(images: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    """A batch shifted by up to an eighth of its side per image, and flipped for ``shift_flip``."""
    return Moves.draw(len(images), images.shape[2], kind, generator).to(images.device).of(images)
