"""Reading and writing by index tensors: nodes, tokens and experts may be indexed while channels are removed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import prunegate
from prunegate.groups import ExampleInputs, Trace
from tests.conftest import random_masks

NODES, TOKENS, WIDTH, HIDDEN = 4, 5, 3, 8
INPUTS = torch.randn(NODES, TOKENS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
OTHERS = torch.tensor([3, 0, 2, 2])
PLACES = torch.tensor([[1, 4], [0, 3], [2, 2], [4, 0]])  # two tokens of each node
MASK = torch.arange(NODES * TOKENS).reshape(NODES, TOKENS) % 3 == 0


class Net(nn.Module):
    """Two layers of each node's tokens, and what stands between them and the head."""

    def __init__(self, between: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, 2)
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.between(self.a(x), self.b(x)).relu())
        return y


def put(target: torch.Tensor, where: tuple[torch.Tensor | slice, ...], values: torch.Tensor) -> torch.Tensor:
    target = target.clone()
    target[where] = values
    return target


def wide(places: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return places[..., None].repeat(1, 1, like.shape[-1])


# name: (what stands between the layers, the groups and their units)
TOGETHER = {"a": HIDDEN}
CASES: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], dict[str, int]]] = {
    "index": (lambda a, b: a[OTHERS] + b, TOGETHER),
    "index of two dimensions": (lambda a, b: a[torch.arange(NODES)[:, None], PLACES] + b[:, :2], TOGETHER),
    "index apart": (lambda a, b: a.transpose(1, 2)[OTHERS, :, OTHERS] + b[:, 0], TOGETHER),
    "index_select": (lambda a, b: a.index_select(1, OTHERS) + b[:, :4], TOGETHER),
    "index_add": (lambda a, b: torch.zeros_like(a).index_add(0, OTHERS, b) + a, TOGETHER),
    "index_add to zeros of a fixed form": (
        lambda a, b: torch.zeros(NODES, TOKENS, a.shape[-1]).to(a).index_add(1, OTHERS, b[:, :4]) + a,
        TOGETHER,
    ),
    "index_copy": (lambda a, b: a.index_copy(0, OTHERS[:3], b[1:]), TOGETHER),
    "index_reduce": (lambda a, b: a.index_reduce(0, OTHERS, b, "amax"), TOGETHER),
    "index_fill": (lambda a, b: a.index_fill(1, OTHERS, 2.0) * b, TOGETHER),
    "put": (lambda a, b: put(a, (OTHERS[:2],), b[:2]), TOGETHER),
    "put in a middle dimension": (lambda a, b: put(a, (slice(None), OTHERS[:2]), b[:, 1:3]), TOGETHER),
    "put to two dimensions": (lambda a, b: put(a, (OTHERS, OTHERS), b[:, 0]), TOGETHER),
    "put the same everywhere": (lambda a, b: put(a, (OTHERS[:2],), b[0, 0]), TOGETHER),
    "put a number": (lambda a, b: put(a, (MASK,), torch.tensor(1.0).to(a)) + b, TOGETHER),
    "accumulate": (lambda a, b: a.index_put((OTHERS,), b, accumulate=True), TOGETHER),
    "gather": (lambda a, b: a.gather(1, wide(PLACES, a)) + b[:, :2], TOGETHER),
    "gather by an expanded index": (lambda a, b: a.gather(1, PLACES[..., None].expand(-1, -1, a.shape[-1])), TOGETHER),
    "sort each channel": (lambda a, b: a.gather(1, b.argsort(1)), TOGETHER),
    "scatter": (lambda a, b: a.scatter(1, wide(PLACES, a), b[:, :2]), TOGETHER),
    "scatter a number": (lambda a, b: a.scatter(1, wide(PLACES, a), 0.5) + b, TOGETHER),
    "scatter_add": (lambda a, b: torch.zeros_like(a).scatter_add(1, wide(PLACES, b), b[:, :2]) + a, TOGETHER),
    "scatter_reduce": (lambda a, b: a.scatter_reduce(1, wide(PLACES, a), b[:, :2], "amax"), TOGETHER),
}


@pytest.mark.filterwarnings("ignore:index_reduce.. is in beta")
@pytest.mark.parametrize("name", CASES)
def test_channels_beside_an_index_are_gated_and_compact_without_loss(name: str) -> None:
    between, expected = CASES[name]
    net = Net(between).double().eval()
    gated = prunegate.wrap(net, INPUTS)
    assert {group.name: group.num_units for group in gated.groups} == expected
    for seed in range(3):
        gated.set_masks(random_masks(gated.groups, 0.5, seed))
        result = prunegate.compact(gated)
        assert type(result.model) is Net
        assert result.certificate.float64.max_rel <= 1e-9


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda a, b: a[..., torch.arange(HIDDEN)] + b, "picked by an index tensor"),
        (lambda a, b: b + a.index_add(2, torch.arange(HIDDEN), b), "placed by an index tensor"),
        (lambda a, b: b + put(a, (..., torch.arange(HIDDEN)), b), "placed by an index tensor"),
        (lambda a, b: b + a.gather(2, torch.zeros(NODES, TOKENS, HIDDEN).long()), "placed by an index tensor"),
        (lambda a, b: b + a.take(torch.arange(a.numel()).view_as(a)), "picked by an index tensor"),
        (lambda a, b: b + put(a, (OTHERS,), torch.ones(HIDDEN).double().cummax(0)[0]), "cannot be removed"),
    ],
)
def test_channels_along_an_index_are_pinned(
    between: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], reason: str
) -> None:
    analysis = Trace(Net(between).double().eval(), ExampleInputs.of(INPUTS)).analysis()
    assert reason in next(pinned for pinned in analysis.pinned if pinned.name == "a").reason


def test_an_index_with_numbers_of_its_own_for_each_channel_is_cut_with_them() -> None:
    own = torch.stack([torch.randperm(TOKENS, generator=torch.Generator().manual_seed(c))[:2] for c in range(HIDDEN)])
    index = own.T.expand(NODES, 2, HIDDEN).clone()
    net = Net(lambda a, b: a.gather(1, index[..., : a.shape[-1]]) + b[:, :2]).double().eval()
    with pytest.raises(prunegate.NothingToPruneError, match=r"computes something else"):
        prunegate.wrap(net, INPUTS, backend="module")  # the code would take the first numbers, not the kept ones
    gated = prunegate.wrap(net, INPUTS)
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    assert prunegate.compact(gated).certificate.float64.max_rel <= 1e-9
