"""Dimensions of length 0: empty intermediate tensors, and padding of 0."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunegate
from tests.conftest import random_masks, randomise

WIDTH = 16


class Net(nn.Module):
    """Two layers with an operation between them that keeps, or changes, how many channels there are."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor], width: int = WIDTH) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, WIDTH), nn.Linear(width, 12), nn.Linear(12, 3)
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.c(self.b(self.between(self.a(x))).relu())
        return y


def _with_empty_memory(h: torch.Tensor) -> torch.Tensor:
    """Keys of a first step: those of the steps before it are none yet, made in the form of heads."""
    batch, _, width = h.shape
    past = h[:, :0].reshape(batch, 0, 4, width // 4).transpose(1, 2)
    heads = h.view(batch, -1, 4, width // 4).transpose(1, 2)
    return torch.cat([past, heads], 2).transpose(1, 2).flatten(2)


# name: (operation, width after it, units that the layer before it must have)
OPERATIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], int, int]] = {
    "padded in front": (lambda h: F.pad(h, (2, 0)), WIDTH + 2, WIDTH),
    "padded behind": (lambda h: F.pad(h, (0, 3)), WIDTH + 3, WIDTH),
    "padded by nothing": (lambda h: F.pad(h, (0, 0, 1, 0))[:, 1:], WIDTH, WIDTH),
    "padded over time": (lambda h: F.pad(h, (0, 0, 2, 0)).cumsum(1)[:, 2:], WIDTH, WIDTH),
    "a prefix of no positions": (lambda h: torch.cat([h[:, :0], h], 1), WIDTH, WIDTH),
    "a prefix of no channels": (lambda h: torch.cat([h.narrow(2, 3, 0), h], 2), WIDTH, WIDTH),
    "a new tensor of no positions": (lambda h: torch.cat([h.new_zeros(len(h), 0, h.shape[2]), h], 1), WIDTH, WIDTH),
    "an empty start": (lambda h: torch.cat([torch.zeros(0, dtype=h.dtype), h.flatten()]).view(h.shape), WIDTH, 0),
    "nothing, computed with": (lambda h: torch.cat([h[:, :0].relu() * 2 + 1, h], 1), WIDTH, WIDTH),
    "nothing, split off": (lambda h: torch.cat(h.split([0, h.shape[2]], 2)[::-1], 2), WIDTH, WIDTH),
    "an empty memory of heads": (_with_empty_memory, WIDTH, 4),
    "nothing, summed": (lambda h: h + h[:, :0].sum(1, keepdim=True), WIDTH, WIDTH),
    "nothing, transformed": (
        lambda h: h + (h[:, :0] @ torch.ones(h.shape[2], 1, dtype=h.dtype)).sum((1, 2), keepdim=True), WIDTH, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_dimension_of_length_0_takes_no_gates_away(name: str) -> None:
    between, width, units = OPERATIONS[name]
    model = randomise(Net(between, width)).double().eval()
    gated = prunegate.wrap(model, torch.randn(2, 7, 5, dtype=torch.float64))
    found = {group.name: group.num_units for group in gated.groups}
    assert found.get("a", 0) >= units, (found, [p.reason for p in gated.pinned])
    for seed in range(3):
        gated.set_masks(random_masks(gated.groups, 0.5, seed))
        compact = prunegate.compact(gated).model.eval()
        x = torch.randn(3, 7, 5, dtype=torch.float64)
        torch.testing.assert_close(compact(x), gated.eval()(x), rtol=1e-9, atol=1e-12)


class Tokens(nn.Module):
    """As many learned tokens before all others as its user wants: none."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.tokens = nn.Parameter(torch.zeros(0, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(torch.cat([self.tokens.expand(len(x), -1, -1), self.stem(x)], 1))
        return y


def test_a_parameter_without_elements_is_cut_with_what_it_meets() -> None:
    gated = prunegate.wrap(Tokens().double().eval(), torch.randn(2, 7, 5, dtype=torch.float64))
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    compact = prunegate.compact(gated).model
    x = torch.randn(3, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(compact(x), gated(x), rtol=1e-9, atol=1e-12)
    assert compact.tokens.shape == (0, int(gated.masks()["stem"].sum()))
