"""Expanded entries, sums with vectors, and rows written by a mask take on the channels they are combined with."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import prunegate
from tests.conftest import random_masks, randomise

WIDTH = 16
ROWS = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers with an operation between them."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 12), nn.Linear(12, 3)
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.c(self.b(self.between(self.a(x).relu())).relu())
        return y


def _count(h: torch.Tensor) -> torch.Tensor:
    return (torch.arange(h.shape[0], device=h.device, dtype=h.dtype) + 1).unsqueeze(1)


def _mean_over_neighbours(h: torch.Tensor) -> torch.Tensor:
    """What graph libraries do: neighbours are summed, their number is expanded."""
    index = torch.tensor([0, 0, 1, 2, 4, 4])
    total = h.new_zeros(h.shape).scatter_add(0, index.view(-1, 1).expand_as(h), h)
    count = h.new_zeros(h.shape[0]).scatter_add(0, index, h.new_ones(6)).clamp(min=1)
    return h + total / count.view(-1, 1).expand_as(total)


def _placed(h: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return h.masked_scatter(mask, h.flip(0))


def _at(h: torch.Tensor) -> torch.Tensor:
    return (torch.arange(h.shape[1]) % 3 == 1).view(1, -1, 1)


# name: (operation, input)
OPERATIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]] = {
    "expanded divisor": (lambda h: h / _count(h).expand_as(h), ROWS),
    "expanded by a size that is read off": (lambda h: h * _count(h).expand(-1, h.shape[1]), ROWS),
    "broadcast_to": (lambda h: h + torch.broadcast_to(_count(h), h.shape), ROWS),
    "repeated divisor": (lambda h: h / _count(h).repeat(1, h.shape[1]), ROWS),
    "mean over neighbours": (_mean_over_neighbours, ROWS),
    "divided by its own mean": (lambda h: h / h.mean(1, keepdim=True).add(1.0).expand_as(h), ROWS),
    "masked by an expanded mask": (lambda h: h.masked_fill((_count(h) > 2).expand_as(h), 0.5), ROWS),
    "scattered by a mask": (lambda h: _placed(h, _at(h).expand_as(h)), TOKENS),
    "scattered by a mask that broadcasts": (lambda h: _placed(h, _at(h)), TOKENS),
    "matrix times a vector of ones": (lambda h: h + torch.mv(h, torch.ones(h.shape[1], dtype=h.dtype))[:, None], ROWS),
    "vectors multiplied": (lambda h: h + torch.dot(h[0], h[1]), ROWS),
}  # fmt: skip


def _assert_lossless(model: nn.Module, x: torch.Tensor, group: str, units: int) -> prunegate.GatedModel:
    gated = prunegate.wrap(model.double().eval(), x)
    found = {one.name: one.num_units for one in gated.groups}
    assert found.get(group) == units, (found, [p.reason for p in gated.pinned])
    for seed in range(3):
        gated.set_masks(random_masks(gated.groups, 0.5, seed))
        compact = prunegate.compact(gated).model
        for training in (False, True):
            a, b = gated.train(training)(x), compact.train(training)(x)
            torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-12)
    return gated


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_follows_the_channels_takes_no_gates_away(name: str) -> None:
    between, x = OPERATIONS[name]
    _assert_lossless(randomise(Net(between)), x, "a", WIDTH)


def test_a_mask_of_its_own_for_each_channel_pins_them() -> None:
    mask = torch.rand(1, 7, WIDTH, generator=torch.Generator().manual_seed(0)) < 0.5
    gated = prunegate.wrap(Net(lambda h: _placed(h, mask)).double(), TOKENS)
    assert [group.name for group in gated.groups] == ["b"]


def test_heads_meet_a_mask_that_is_expanded_over_them() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch, tokens, _ = x.shape
            q, k, v = (f(x).view(batch, tokens, -1, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
            far = (torch.arange(tokens) > 4).view(1, 1, 1, -1).expand(batch, q.shape[1], tokens, -1)
            scores = (q @ k.transpose(-1, -2)).masked_fill(far, -1e9)
            y: torch.Tensor = self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
            return y

    model = nn.Sequential(nn.Linear(5, WIDTH), Attention(), nn.Linear(WIDTH, 3))
    _assert_lossless(randomise(model), TOKENS, "1.q", 4)


@pytest.mark.parametrize("normalise", [spectral_norm, nn.utils.spectral_norm], ids=["parametrization", "hook"])
@pytest.mark.filterwarnings("ignore:.*spectral_norm.* is deprecated")
def test_spectral_norm_is_that_of_the_kept_part(normalise: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    convolutions = normalise(nn.Conv2d(3, 12, 3)), normalise(nn.Conv2d(12, 10, 3))
    model = nn.Sequential(
        convolutions[0], nn.LeakyReLU(0.1), convolutions[1], nn.Flatten(), normalise(nn.Linear(160, 4))
    )
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    gated = _assert_lossless(
        model, x, "0.parametrizations.weight.original" if normalise is spectral_norm else "0.weight_orig", 12
    )
    assert sum(group.num_units for group in gated.groups) == 22
