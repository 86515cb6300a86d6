"""Code that runs only in training: if it involves channels, a run in training mode is traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from prunegate.groups import ExampleInputs, Trace
from tests.wrapping.exactness import assert_exact, noise


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 12), nn.Linear(12, 3)
        self.aux, self.softmax = nn.Linear(12, 2), nn.Softmax(-1)
        self.drop, self.recompute, self.augment = nn.Dropout(0.5), False, None

    def forward(self, x: torch.Tensor) -> Any:
        return self.b(self.a(x))


def drop_path(x: torch.Tensor, share: float, training: bool) -> torch.Tensor:
    if share == 0.0 or not training:
        return x
    kept = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - share)
    return x * kept.div_(1 - share)


class DropsPaths(Net):
    def forward(self, x: torch.Tensor) -> Any:
        return self.b(drop_path(self.a(x), 0.2, self.training))


class Drops(Net):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x)
        if self.training:
            y = self.drop(y) + 0.1 * torch.randn_like(y)
        return self.b(y)


class Recomputes(Net):
    """A switch that is off."""

    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x)
        if self.recompute and self.training:
            return checkpoint(self.softmax, y, use_reentrant=False)
        return self.b(y)


class HasHead(Net):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x)
        return (self.b(y), self.aux(y)) if self.training else self.b(y)


class HasLayer(Net):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x)
        if not self.training:
            return self.b(y)
        y = self.softmax(y)
        return self.b(y)


def centred(y: torch.Tensor, on: bool) -> torch.Tensor:
    return y - y.mean(-1, keepdim=True) if on else y


class Centres(Net):
    def forward(self, x: torch.Tensor) -> Any:
        return self.b(centred(self.a(x), on=self.training))


class HoldsANumber(Net):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x)
        return self.b(y + 0.1 * torch.randn(12, dtype=y.dtype) if self.training else y)


class CallsWhatItIsGiven(Net):
    def __init__(self) -> None:
        super().__init__()
        self.augment: Callable[[torch.Tensor], torch.Tensor] = lambda y: y.softmax(-1)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x)
        return self.b(self.augment(y) if self.training else y)


def follows_training(model: nn.Module) -> bool:
    return any(run.training for run in Trace(model.eval(), ExampleInputs.of(torch.randn(2, 7, 5))).runs)


@pytest.mark.parametrize("kind", [DropsPaths, Drops, Recomputes])
def test_what_only_drops_at_random_is_not_followed(kind: type[Net]) -> None:
    model = kind()
    del model.aux  # no layer that no run reads
    assert not follows_training(model)


@pytest.mark.parametrize("kind", [HasHead, HasLayer, Centres, HoldsANumber, CallsWhatItIsGiven])
def test_what_has_to_do_with_channels_is_followed_and_exact(kind: type[Net]) -> None:
    model = kind()
    if kind is not HasHead:
        del model.aux
    assert follows_training(model)
    if kind is not HoldsANumber:  # whose noise has another form for fewer channels
        assert_exact(model, noise(2, 6, 5), (noise(3, 6, 5),))
