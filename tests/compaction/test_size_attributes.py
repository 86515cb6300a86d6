"""Sizes that modules store as attributes, where their code also reads sizes off its inputs."""

from __future__ import annotations

import torch
from torch import nn

import prunegate
from tests.conftest import random_masks, randomise
from tests.wrapping.exactness import noise


class Attention(nn.Module):
    """Checks its heads' width against an attribute, and takes that of its result from its input, as TrOCR's does."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        # More attributes of the same size than are tried with every size that it may become.
        self.embed_dim = self.key_dim = self.value_dim = width
        self.num_heads, self.head_dim = heads, width // heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        batch, length, width = x.shape
        source = x if other is None else other
        query = self.query(x).view(batch, length, self.num_heads, self.head_dim).transpose(1, 2)
        key = self.key(source).view(batch, -1, self.num_heads, self.head_dim).transpose(1, 2)
        value = self.value(source).view(batch, -1, self.num_heads, self.head_dim).transpose(1, 2)
        result = (query @ key.transpose(2, 3)).softmax(-1) @ value
        if result.shape != (batch, self.num_heads, length, self.head_dim):
            raise ValueError(f"found {tuple(result.shape)}, expected a width of {self.head_dim}")
        return self.out(result.transpose(1, 2).reshape(batch, length, width))


class Decoder(nn.Module):
    """The same class attends to the stream itself and to another one, so its tensors are others in the second."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.memory = nn.Linear(5, 32), nn.Linear(5, 32)
        self.own, self.cross, self.head = Attention(32, 4), Attention(32, 4), nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stream = self.stem(x)
        stream = stream + self.own(stream)
        result: torch.Tensor = self.head(stream + self.cross(stream, self.memory(x[:, 1:])))
        return result


def test_attributes_are_found_for_every_use_of_a_class_that_also_passes_sizes_on() -> None:
    gated = prunegate.wrap(randomise(Decoder()).double().eval(), noise(2, 7, 5), backend="module")
    assert not gated.fix_ups.replays
    assert not gated.limits
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    compact = prunegate.compact(gated).model
    with torch.no_grad():
        torch.testing.assert_close(compact(noise(3, 11, 5)), gated.eval()(noise(3, 11, 5)), rtol=1e-9, atol=1e-12)
