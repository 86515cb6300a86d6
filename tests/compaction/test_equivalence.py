"""The comparison of models: what it detects, and which differences it does not blame on the cut."""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunegate
from prunegate.compaction.equivalence import Side, difference, gap, put_aside, run
from prunegate.groups import ExampleInputs
from prunegate.groups.following.outputs import named_tensors, names_of_state
from tests.conftest import random_masks, randomise

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ([1.0, INF], [1.0, INF], 0.0),
        ([1.0, INF], [1.0, -INF], INF),
        ([1.0, NAN], [1.0, NAN], 0.0),
        ([1.0, NAN], [1.0, INF], INF),
        ([1.0, 2.0], [1.0, NAN], INF),
        ([1.0, -INF], [1.5, -INF], 0.5),
        ([1 + 1j], [1 + 1.5j], 0.5 / 2**0.5),
        ([], [], 0.0),
    ],
)
def test_entries_are_compared_as_what_they_are(one: list[Any], other: list[Any], apart: float) -> None:
    assert gap([torch.tensor(one)], [torch.tensor(other)]).max_rel == pytest.approx(apart)


def test_a_small_tensor_is_not_hidden_by_a_large_one() -> None:
    large, small = torch.ones(3, dtype=torch.float64) * 1e6, torch.ones(3, dtype=torch.float64) * 1e-2
    assert gap([large, small], [large, small * 1.01]).max_rel > 1e-8
    assert gap([large, small], [large, small + 1e-10]).max_rel < 1e-9  # rounding beside the large one
    assert gap([large], [large[:2]]).max_rel == INF


class Plain:
    """An object of a user's class."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.again = self  # a cycle


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


@dataclass
class Data:
    value: Any


Named = namedtuple("Named", ["value"])


class Mapped(dict):  # type: ignore[type-arg]
    """As outputs of transformers: a mapping whose entries are attributes too."""


HOLDERS: dict[str, Callable[[Any], Any]] = {
    "list": lambda v: [v],
    "tuple": lambda v: (None, v),
    "dict": lambda v: {"value": v},
    "mapping": lambda v: Mapped(value=v),
    "dataclass": Data,
    "named tuple": Named,
    "object": Plain,
    "slots": Slotted,
}


class Returning(nn.Module):
    def __init__(self, hold: Callable[[Any], Any]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.hold = nn.Linear(5, 16), nn.Linear(16, 8), nn.Linear(8, 3), hold

    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x).relu()
        return self.c(self.b(y).relu()), self.hold(self.hold(y))


@pytest.mark.parametrize("name", HOLDERS)
def test_what_is_returned_is_never_cut_however_deep_it_lies(name: str) -> None:
    model = randomise(Returning(HOLDERS[name])).double().eval()
    x = torch.randn(3, 5, dtype=torch.float64)
    gated = prunegate.wrap(model, x)
    assert [group.name for group in gated.groups] == ["b"]
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    found = list(named_tensors(prunegate.compact(gated).model(x)))
    assert [tuple(tensor.shape) for _, tensor in found] == [(3, 3), (3, 16)]


class Cache:
    def __init__(self) -> None:
        self.keys: torch.Tensor | None = None


class Cached(nn.Module):
    """What it returns for itself may be as small as it has become."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(5, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor, past: Cache | None = None) -> dict[str, Any]:
        past = past or Cache()
        y = self.a(x).relu()
        past.keys = y if past.keys is None else past.keys + y
        return {"logits": self.c(past.keys), "past": past}


def test_state_that_a_model_takes_back_is_its_own() -> None:
    model = randomise(Cached()).double().eval()
    assert "past" in names_of_state(model)
    x = torch.randn(3, 5, dtype=torch.float64)
    gated = prunegate.wrap(model, x)
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    compact = prunegate.compact(gated).model
    with torch.no_grad():
        first, second = gated(x), compact(x)
        again = gated(x, past=first["past"])["logits"], compact(x, past=second["past"])["logits"]
    torch.testing.assert_close(again[1], again[0], rtol=1e-9, atol=1e-12)


class Dropping(nn.Module):
    """Attention in which training drops some weights, over a stream that is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.qkv, self.o, self.c = nn.Linear(5, 24), nn.Linear(24, 72), nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.dropout(self.a(x), 0.2, self.training)
        q, k, v = self.qkv(y).unflatten(-1, (3, 4, 6)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=0.3 if self.training else 0.0)
        return self.c(y.transpose(1, 2).flatten(2) @ self.o.weight)


def test_what_training_drops_is_not_held_against_the_cut() -> None:
    model = randomise(Dropping()).double().train()
    gated = prunegate.wrap(model, torch.randn(2, 7, 5, dtype=torch.float64))
    assert len(gated.groups) >= 2
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    result = prunegate.compact(gated)
    assert any("training mode" in way for way in result.certificate.checked)
    # And only while they are compared.
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    assert not torch.equal(gated.train()(x), gated(x))


class Deep(nn.Module):
    """In training with two samples of one position BatchNorm divides by next to nothing, twelve times over."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, eps=1e-12), nn.Tanh()) for _ in range(12)]
        self.layers, self.head = nn.Sequential(nn.Linear(5, 8), *layers), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x))


def test_what_rounding_does_is_told_and_not_blamed_on_the_cut() -> None:
    gated = prunegate.wrap(randomise(Deep()).double().eval(), torch.randn(2, 5, dtype=torch.float64))
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    certificate = prunegate.compact(gated).certificate
    assert certificate.float64 is not None
    assert certificate.float64.max_rel <= 1e-9
    told = any("rounding alone" in line for line in certificate.not_checked)
    assert told or any("training" in way for way in certificate.checked)


def test_a_run_leaves_nothing_behind() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.seen = nn.BatchNorm1d(5), []
            self.kept: torch.Tensor | None = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.kept = x
            self.seen.append(x.shape)
            x.mul_(2)
            return self.norm(x)

    model, x = Keeps(), torch.randn(4, 5)
    before, given = model.norm.running_mean.clone(), x.clone()  # type: ignore[union-attr]
    with put_aside(model):
        first = run(Side.of(model), ExampleInputs.of(x), training=True, gradients=True)
    with put_aside(model):
        assert difference(first, run(Side.of(model), ExampleInputs.of(x), True, True)).max_rel == 0.0
    assert torch.equal(before, model.norm.running_mean)  # type: ignore[arg-type]
    assert model.kept is None
    assert model.seen == []
    assert torch.equal(x, given)


def test_a_certificate_says_what_rounding_adds_in_single_precision() -> None:
    """In single precision every difference is rounding; that is measured, not left out."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(32, 3)
    )
    gated = prunegate.wrap(model, torch.randn(2, 3, 6, 6))
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    certificate = prunegate.compact(gated).certificate
    assert 0 < certificate.float32.max_rel < 1e-5
    assert certificate.float64 is not None
    assert certificate.float64.max_rel < 1e-12
    assert not certificate.not_checked
