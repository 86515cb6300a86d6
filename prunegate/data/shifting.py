"""Random shifts and mirroring of images in memory, a whole batch at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Moves(NamedTuple):
    """How the images of a batch are moved and mirrored, drawn for all of them whichever part is then made.

    Attributes:
        shift: Rows and columns of each image, (n, 2), or None to leave all as they are.
        mirrored: Which images, bool, (n, 1), or None for none.
    """

    shift: torch.Tensor | None
    mirrored: torch.Tensor | None

    @classmethod
    def draw(cls, count: int, height: int, kind: str, generator: torch.Generator) -> Moves:
        """By up to an eighth of the side, each image by itself, and mirrored for ``shift_flip``."""
        if kind == "none":
            return cls(None, None)
        shift = torch.randint(0, 2 * _reach(height) + 1, (count, 2), generator=generator)
        return cls(shift, torch.rand(count, 1, generator=generator) < 0.5 if kind == "shift_flip" else None)

    def of(self, images: torch.Tensor, part: slice) -> torch.Tensor:
        """The images of one part of the batch, changed."""
        images = images[part]
        if self.shift is None:
            return images
        count, _, height, width = images.shape
        padded = F.pad(images, [_reach(height)] * 4, mode="replicate")
        shift = self.shift[part]
        rows = shift[:, :1] + torch.arange(height)
        columns = shift[:, 1:] + torch.arange(width)
        if self.mirrored is not None:
            columns = torch.where(self.mirrored[part], columns.flip(1), columns)
        index = torch.arange(count)[:, None, None]
        moved = padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        # `contiguous()` would leave images of one channel as they are, whose strides torch takes for channels-last.
        # There oneDNN's gradient of a strided 1 × 1 convolution of few channels, as pruning leaves them, writes
        # beyond its memory (https://github.com/uxlfoundation/oneDNN/issues/6035).
        return moved.clone(memory_format=torch.contiguous_format)


def _reach(height: int) -> int:
    return max(1, height // 8)


def augmented(images: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    """A batch moved by up to an eighth of its side, each image by itself, and mirrored for ``shift_flip``."""
    return Moves.draw(len(images), images.shape[2], kind, generator).of(images, slice(None))
