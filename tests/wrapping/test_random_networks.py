"""The first promise as a property: any network of these pieces, any masks, compacts without loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hypothesis
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import prunegate
from prunegate.compaction.equivalence import Side, difference, put_aside, run
from prunegate.groups import ExampleInputs
from prunegate.groups.torch_workarounds.kernels import decomposed_attention
from tests.conftest import random_masks, randomise

ACTIVATIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "cosine": torch.cos,  # not zero at zero
    "sigmoid": torch.sigmoid,
}
PIECES = (
    *("conv", "depthwise", "grouped", "norm", "activation", "add", "concat", "chunk", "excite", "shuffle", "reuse"),
    *("split", "flatten", "linear", "attention", "multihead"),
    *("literals", "modes", "dropout", "straight", "scaled"),
)


@dataclass
class Extras:
    shares: list[torch.Tensor]
    nothing: None = None


class Literals(nn.Module):
    """Attention over pixels whose sizes are numbers that no attribute holds as such."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q, self.out, self.sizes = nn.Linear(width, width), nn.Linear(width, width), (heads, width // heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        y = self.q(x.flatten(2).transpose(1, 2)).view(batch, -1, *self.sizes).softmax(1)
        y = self.out(y.reshape(batch, -1, self.sizes[0] * self.sizes[1]))
        return x + y.transpose(1, 2).reshape(batch, channels, height, width)


class Modes(nn.Module):
    """Another path in training, with sizes of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = (width,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return x.reshape(x.shape[0], *self.width, -1).mul(0.5).reshape(x.shape)
        return x


class StraightThrough(torch.autograd.Function):
    """Rounding, with a gradient written by hand."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return (x * 64).round() / 64

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient * 0.5


class ChannelsLast(nn.Module):
    """A layer over the last dimension, as language models have, on an image."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Self-attention over pixels with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(batch, -1, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, -1, channels)
        return x + self.out(y).transpose(1, 2).reshape(batch, channels, height, width)


class Multihead(nn.Module):
    """The same by torch's own layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        y, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return x + y.transpose(1, 2).reshape(x.shape)


def _norm(channels: int, choice: int) -> nn.Module:
    groups = 2 if channels % 2 == 0 else 1
    return (
        nn.BatchNorm2d(channels),
        nn.GroupNorm(1, channels),
        nn.GroupNorm(groups, channels),
        ChannelsLast(nn.LayerNorm(channels)),
        ChannelsLast(nn.RMSNorm(channels, eps=1e-5)),
    )[choice % 5]


class RandomNet(nn.Module):
    """A chain of pieces between a stem and a classifier, drawn by Hypothesis."""

    def __init__(self, width: int, pieces: list[tuple[str, int]]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.pieces = pieces
        self.layers = nn.ModuleDict()
        self.first: dict[str, int] = {}
        self.even: dict[str, bool] = {}  # decided once: code that branches on widths at run time is another matter
        channels = width
        for number, (kind, choice) in enumerate(pieces):
            channels = self._add(str(number), kind, choice, channels)
        self.head = nn.Linear(channels, 3)

    def _add(self, key: str, kind: str, choice: int, channels: int) -> int:
        """Make the layers of one piece; give the number of channels that leave it."""
        outputs = 4 + 2 * choice
        if kind == "conv":
            self.layers[key] = nn.Conv2d(channels, outputs, 3, padding=1, bias=choice % 2 == 0)
            return outputs
        if kind == "depthwise":
            self.layers[key] = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        elif kind == "grouped":
            groups = 2 if channels % 2 == 0 else 1
            self.layers[key] = nn.Conv2d(channels, outputs, 3, padding=1, groups=groups)
            return outputs
        elif kind == "norm":
            self.layers[key] = _norm(channels, choice)
        elif kind == "linear":
            self.layers[key] = ChannelsLast(nn.Linear(channels, outputs, bias=choice % 2 == 0))
            return outputs
        elif kind in ("attention", "multihead"):
            # Few wide heads lose places within them, many narrow ones go as wholes.
            heads = 1 if channels % 2 else 2 if choice % 2 else channels // 2
            self.layers[key] = (Attention if kind == "attention" else Multihead)(channels, heads)
        elif kind == "literals":
            self.layers[key] = Literals(channels, 2 if channels % 2 == 0 else 1)
        elif kind == "modes":
            self.layers[key] = Modes(channels)
        elif kind == "dropout":
            self.layers[key] = nn.Dropout(0.3)
        elif kind == "split":
            self.first[key] = 1 + channels // 3
            self.layers[key] = nn.Conv2d(self.first[key], self.first[key], 1)
        elif kind in ("add", "reuse"):
            self.layers[key] = nn.Conv2d(channels, channels, 3, padding=1)
        elif kind == "concat":
            self.layers[key] = nn.Conv2d(channels, outputs, 1)
            return channels + outputs
        elif kind == "chunk":
            self.even[key] = channels % 2 == 0
            return channels // 2 if self.even[key] else channels
        elif kind == "shuffle":
            self.even[key] = channels % 2 == 0
        elif kind == "excite":
            self.layers[key] = nn.Sequential(
                nn.Conv2d(channels, 4, 1), nn.ReLU(), nn.Conv2d(4, channels, 1), nn.Sigmoid()
            )
        return channels

    def forward(self, x: torch.Tensor, scale: float | None = None) -> dict[str, Any]:
        x = self.stem(x)
        for number, (kind, choice) in enumerate(self.pieces):
            x = self._piece(str(number), kind, choice, x, scale)
        logits = self.head(x.mean((2, 3)))
        return {"logits": logits, "extras": Extras([logits.softmax(-1)])}

    def _piece(self, key: str, kind: str, choice: int, x: torch.Tensor, scale: float | None) -> torch.Tensor:
        if kind == "straight":
            rounded: torch.Tensor = StraightThrough.apply(x)  # type: ignore[no-untyped-call]
            return rounded
        if kind == "scaled":
            return x if scale is None else x * scale
        if kind == "activation":
            return list(ACTIVATIONS.values())[choice % len(ACTIVATIONS)](x)
        if kind == "add":
            return x + self.layers[key](x)
        if kind == "reuse":
            return self.layers[key](torch.tanh(self.layers[key](x)))
        if kind == "concat":
            return torch.cat([x, self.layers[key](x)], dim=1)
        if kind == "chunk":
            if not self.even[key]:
                return x
            first, second = x.chunk(2, dim=1)
            return first * torch.sigmoid(second)
        if kind == "split":  # part of the channels is worked on, the rest passes by
            first, second = torch.split(x, [self.first[key], x.shape[1] - self.first[key]], dim=1)
            return torch.cat([second, self.layers[key](first)], dim=1)
        if kind == "flatten":  # into one dimension and back
            return x.flatten(1).mul(1.5).reshape(x.shape)
        if kind == "excite":
            return x * self.layers[key](x.mean((2, 3), keepdim=True))
        if kind == "shuffle":
            batch, _, height, width = x.shape
            if not self.even[key]:
                return x
            return x.view(batch, 2, -1, height, width).transpose(1, 2).reshape(batch, -1, height, width)
        return self.layers[key](x)


def check(width: int, pieces: list[tuple[str, int]], density: float, seed: int) -> None:
    """Any masks, at any size, in either mode, with gradients and an argument that tracing did not see."""
    model = randomise(RandomNet(width, pieces), seed).double().eval()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    try:
        gated = prunegate.wrap(model, x)
    except prunegate.NothingToPruneError:
        # Only code that derives positions from odd sizes may leave nothing; a plain chain never does.
        assert {"chunk", "shuffle"} & {kind for kind, _ in pieces}
        return
    gated.set_masks(random_masks(gated.groups, density, seed))
    result = prunegate.compact(gated)
    sides = Side(gated, gated.model), Side.of(result.model)
    # What is replayed keeps the image size of the traced run, and says so; the model's own code takes any.
    assert bool(gated.limits) == gated.fix_ups.replays
    size, scale = ((5, 5), {}) if result.fix_ups.replays else ((6, 4), {"scale": 0.7})
    for training in (False, True):
        other = torch.randn(3, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
        with put_aside(gated, result.model):
            given = ExampleInputs((other,), dict(scale))
            one, two = (run(side, given, training, gradients=True) for side in sides)
        assert difference(one, two, result.plan.tensors).max_rel <= 1e-9, (training, size)
    # Fused attention is not counted: torch's counter sees the products only where they are made one by one.
    with torch.no_grad(), decomposed_attention(), FlopCounterMode(display=False) as counter:
        result.model.eval()(x)
    assert counter.get_total_flops() // 2 // 2 == gated.realised_cost("macs")


@pytest.mark.parametrize(
    ("width", "pieces", "density", "seed"),
    [
        # The halves of a shuffle, whose count is a number in the code: a mistake that deep layers shrink.
        (8, [(k, 0) for k in ("shuffle", "reuse", "depthwise", "reuse", "grouped", "conv", "conv")], 0.3, 0),
        # Heads and width that by chance fit torch's attention layer in the dry run, and not with these masks.
        (12, [("conv", 0), ("activation", 3), ("multihead", 0)], 0.3, 0),
        # Two splits that look the same, of channels that go apart from each other.
        (6, [("split", 0), ("split", 0)], 0.6, 0),
        (8, [("literals", 0), ("modes", 0), ("straight", 0), ("scaled", 0), ("dropout", 0), ("literals", 1)], 0.6, 1),
    ],
)
def test_network_that_was_hard(width: int, pieces: list[tuple[str, int]], density: float, seed: int) -> None:
    check(width, pieces, density, seed)


PARTS = 5


@pytest.mark.parametrize("part", range(PARTS))
def test_random_network_compacts_without_loss(part: int) -> None:
    """In parts, so that they run beside each other."""

    @hypothesis.seed(part)
    @settings(
        max_examples=settings.default.max_examples // PARTS,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(
        width=st.sampled_from([6, 8, 12]),
        pieces=st.lists(st.tuples(st.sampled_from(PIECES), st.integers(0, 4)), max_size=7),
        density=st.sampled_from([0.3, 0.6, 0.9]),
        seed=st.integers(0, 5),
    )
    def any_network(width: int, pieces: list[tuple[str, int]], density: float, seed: int) -> None:
        check(width, pieces, density, seed)

    any_network()
