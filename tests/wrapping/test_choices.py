"""Operations that can lose units in several ways: the best ways for the whole network are chosen."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunegate
from prunegate.compaction.consistency import followed
from prunegate.compaction.fix_ups import FixUps
from prunegate.compaction.plan import Plan
from prunegate.groups import ExampleInputs, Trace
from prunegate.groups.solving.choices import finest
from prunegate.groups.solving.partition import Partition
from prunegate.groups.solving.solve import solve
from tests.wrapping.exactness import assert_exact, noise, units

IMAGE, IMAGES = noise(2, 3, 8, 8), (noise(3, 3, 8, 8), noise(2, 3, 10, 12))
TOKENS, MORE_TOKENS = noise(2, 5, 8), (noise(3, 5, 8), noise(2, 9, 8))


def conv(inputs: int, outputs: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups)


GROUPED = {
    # both lose places, though the convolution alone would lose whole groups
    "convolution of 8 groups, norm of 8": ([conv(3, 64), conv(64, 256, 8), nn.GroupNorm(8, 256)], 8 + 32),
    # both lose whole groups, though the norm alone would lose places
    "depthwise convolution, norm of 4 groups": ([conv(3, 24), conv(24, 24, 24), nn.GroupNorm(4, 24)], 6),
    "convolution of 4 groups, depthwise norm": ([conv(3, 16), conv(16, 16, 4), nn.GroupNorm(16, 16)], 4 + 4),
    "norm of 2 groups, then of 6": ([conv(3, 24), nn.GroupNorm(2, 24), nn.GroupNorm(6, 24)], 4),
    "one input channel a group": ([conv(3, 8), conv(8, 24, 8)], 8),
    "groups of unlike numbers": ([conv(3, 24), conv(24, 24, 4), conv(24, 24, 6)], 6 + 2 + 4),
    "transposed, many groups": ([conv(3, 12), nn.ConvTranspose2d(12, 24, 2, 2, groups=6)], 6),
    "transposed, wide groups": ([conv(3, 24), nn.ConvTranspose2d(24, 24, 2, 2, groups=2)], 12 + 12),
}


@pytest.mark.parametrize("name", GROUPED)
def test_grouped_layers_agree_on_units(name: str) -> None:
    layers, expected = GROUPED[name]
    widths = [layer.out_channels for layer in layers if hasattr(layer, "out_channels")]
    gated = assert_exact(nn.Sequential(*layers, nn.Tanh(), conv(widths[-1], 4)), IMAGE, IMAGES)
    assert sum(units(gated).values()) >= expected, (units(gated), [str(p.reason) for p in gated.pinned])


class Attention(nn.Module):
    """Attention over tokens, with what else may lie over its heads and their width."""

    def __init__(self, heads: int, width: int, extra: str) -> None:
        super().__init__()
        total = heads * width
        self.heads, self.width, self.extra = heads, width, extra
        self.stem, self.head = nn.Linear(8, total), nn.Linear(total, 3)
        self.q, self.k, self.v, self.out = (nn.Linear(total, total) for _ in range(4))
        self.u = nn.Parameter(torch.randn(heads, width))
        self.across = nn.Parameter(torch.randn(heads, 1))
        self.q_norm, self.k_norm = nn.LayerNorm(width), nn.RMSNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        q, k, v = (layer(x).unflatten(-1, (self.heads, self.width)) for layer in (self.q, self.k, self.v))
        if self.extra == "a parameter over both":
            q = q + self.u
        elif self.extra == "a parameter over heads":
            v = v * self.across
        elif self.extra == "norms over the width":
            q, k = self.q_norm(q), self.k_norm(k)
        elif self.extra == "queries and keys of length one":
            q, k = F.normalize(q, dim=-1), k / k.norm(dim=-1, keepdim=True)
        elif self.extra == "a sum over the width":
            v = v + torch.cumprod(v, -1)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        y = self.head(x + self.out(y))
        assert isinstance(y, torch.Tensor)
        return y


@pytest.mark.parametrize(
    "extra",
    [
        "nothing",
        "a parameter over both",
        "a parameter over heads",
        "norms over the width",
        "queries and keys of length one",
    ],
)
@pytest.mark.parametrize(("heads", "width"), [(4, 6), (6, 4)])
def test_heads_or_places_within_them_whichever_are_more(extra: str, heads: int, width: int) -> None:
    gated = assert_exact(Attention(heads, width, extra), TOKENS, MORE_TOKENS)
    assert units(gated)["q"] == max(heads, width), (units(gated), [str(p.reason) for p in gated.pinned])


def test_whole_heads_where_the_width_has_to_stay() -> None:
    assert units(assert_exact(Attention(4, 6, "a sum over the width"), TOKENS, MORE_TOKENS))["q"] == 4


def test_whole_heads_by_request() -> None:
    gated = prunegate.wrap(Attention(4, 6, "norms over the width"), TOKENS.float(), attention="heads")
    assert units(gated)["q"] == 4


class Residual(nn.Module):
    """A stream that many norms of groups read, and grouped convolutions between: one component of many choices."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 24), conv(24, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm((2, 4)[i % 2], 24), nn.ReLU(), conv(24, 24, 4), nn.GroupNorm(4, 24), conv(24, 24)
            )
            for i in range(depth)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        y: torch.Tensor = self.head(x)
        return y


def test_the_ways_that_are_taken_leave_as_much_as_any() -> None:
    """Of a small network all combinations are tried: none lets more channels go, or as many in more units."""
    trace = Trace(Residual(2).eval(), ExampleInputs.of(IMAGE.float()))
    choices = trace.constraints.choices

    def left(ways: list[int]) -> tuple[int, int]:
        found = solve(trace.constraints, trace._shapes, trace._parameters, 2, [], {}, ways)
        members = [member for group in found.groups for member in group.members]
        made = [m for m in members if m.axis == 0 and len(found.shapes[m.tensor]) > 1]
        channels = sum(int((member.units >= 0).sum()) for member in made)
        return channels, found.num_units

    chosen = trace._ways(frozenset())
    best = max(left(list(ways)) for ways in itertools.product(*(range(len(choice.ways)) for choice in choices)))
    assert left(chosen) == best


def test_a_deep_network_of_many_choices_is_solved_and_exact() -> None:
    gated = assert_exact(Residual(12), IMAGE, IMAGES, seeds=1)
    assert sum(units(gated).values()) == 6 + 12 * 6


def test_what_was_compacted_with_units_chosen_one_by_one_is_loaded() -> None:
    """Files of before hold the units that each operation would choose by itself."""
    model = nn.Sequential(conv(3, 16), conv(16, 48, 4), nn.Tanh(), conv(48, 4)).double().eval()
    trace = Trace(model, ExampleInputs.of(IMAGE))
    alone, together = trace.analysis(finest=False), trace.analysis()
    assert [g.num_units for g in alone.groups] != [g.num_units for g in together.groups]
    keep = np.arange(alone.num_units) % 3 > 0
    plan = Plan.of(alone, keep)
    _, analysis, kept = followed(model, plan, FixUps(), ExampleInputs.of(IMAGE))
    assert np.array_equal(kept, keep)
    assert analysis.num_units == alone.num_units


def test_a_search_over_nothing_gives_nothing() -> None:
    trace = Trace(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)).eval(), ExampleInputs.of(torch.randn(2, 4)))
    assert finest(trace.constraints, np.arange(trace.constraints.size), Partition(trace.constraints.size)) == []
