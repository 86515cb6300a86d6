"""Runs at other sizes: which are tried and traced, and their results."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunegate
from prunegate.compaction.equivalence import Side, difference, run
from prunegate.groups import ExampleInputs, Trace
from prunegate.groups.following.input_sizes import Variation, other_sizes
from tests.conftest import random_masks, randomise


def shapes(inputs: ExampleInputs) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in inputs.tensors()]


def test_images_grow_by_steps_that_suit_them_with_unequal_sides() -> None:
    given = ExampleInputs.of(torch.randn(2, 3, 64, 64))
    first = other_sizes(given)[0].of(given)
    ((batch, channels, height, width),) = shapes(first)
    assert (batch, channels) == (2, 3)
    assert height != width
    assert height % 32 == width % 32 == 0
    assert min(height, width) > 64


def test_token_ids_and_their_masks_grow_alike() -> None:
    ids = torch.randint(9, (2, 7))
    given = ExampleInputs.of({"ids": ids, "mask": torch.ones(2, 7), "pairs": torch.ones(2, 7, 7, dtype=torch.bool)})
    for variation in other_sizes(given):
        grown = variation.of(given).kwargs
        length = grown["ids"].shape[1]
        assert length > 7
        assert grown["mask"].shape == (2, length)
        assert torch.equal(grown["ids"][:, :7], ids)


def test_samples_are_doubled_beside_a_size() -> None:
    given = ExampleInputs.of(torch.randn(2, 7, 5))
    assert shapes(Variation(doubled=True).of(given)) == [(4, 7, 5)]
    assert shapes(Variation(doubled=True, layout="images and tokens").of(given))[0][0] == 4


class Convolutions(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))


class Reshapes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).reshape(x.shape[0], -1, 12))


class Fixed(Reshapes):
    """It takes one length alone, by a table of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(7, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + self.table)


class Trains(Reshapes):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (0.5 if self.training else 1.0)


class TrainsAlike(Reshapes):
    """In training only it looks across channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x).reshape(x.shape[0], -1, 12)
        return self.b(y.softmax(-1) if self.training else y)


@pytest.mark.parametrize(
    ("model", "inputs", "followed"),
    [
        (Convolutions(), torch.randn(2, 3, 9, 9), [(False, False, False)]),
        (Reshapes(), torch.randn(2, 7, 5), [(False, False, False), (True, True, False)]),
        (Fixed(), torch.randn(2, 7, 5), [(False, False, False), (True, False, False)]),
        (Trains(), torch.randn(2, 7, 5), [(False, False, False), (True, True, False)]),
        (TrainsAlike(), torch.randn(2, 7, 5), [(False, False, False), (True, True, False), (True, False, True)]),
    ],
)
def test_models_are_followed_where_their_code_asks_for_it(
    model: nn.Module, inputs: torch.Tensor, followed: list[tuple[bool, bool, bool]]
) -> None:
    trace = Trace(model.eval(), ExampleInputs.of(inputs))
    found = [(run.variation.doubled, run.variation.layout is not None, run.training) for run in trace.runs]
    assert found == followed
    assert trace.not_followed == ()


class Mixes(nn.Module):
    """Channels and positions change places without a transposition: which channels meet depends on the image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        mixed = y.flatten(2).transpose(1, 2).reshape(y.shape)
        return self.b(y + mixed)


def test_a_coupling_that_holds_at_one_size_is_no_rule_for_others() -> None:
    model = randomise(Mixes()).double().eval()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    try:
        gated = prunegate.wrap(model, x)
    except prunegate.NothingToPruneError:
        return  # nothing of it holds at both sizes
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    result = prunegate.compact(gated)
    for size in ((4, 4), (6, 4), (5, 5)):
        given = ExampleInputs.of(torch.randn(3, 3, *size, dtype=torch.float64))
        one, two = (run(side, given, False, True) for side in (Side(gated, gated.model), Side.of(result.model)))
        assert difference(one, two, result.plan.tensors).max_rel <= 1e-9, size
