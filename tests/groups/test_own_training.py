"""Code that runs only in training: if it involves channels, a run in training mode is traced."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import prunegate
from prunegate.groups import ExampleInputs, Trace
from tests.wrapping.exactness import assert_exact, noise, units


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


class Chooses(Net):
    """The mode picks a function, where no condition stands."""

    def forward(self, x: torch.Tensor) -> Any:
        return self.b([torch.relu, self.soft][int(self.training)](self.a(x)))

    def soft(self, y: torch.Tensor) -> torch.Tensor:
        return y.softmax(-1)


class Switches(Net):
    """What it is in is noted by a method of its own."""

    def train(self, mode: bool = True) -> Switches:
        self.recompute = mode
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x)
        return self.b(nn.functional.normalize(y, dim=-1) if self.recompute else y)


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


class DropsLayers(nn.Module):
    """Without a sum around them: what comes before a layer is then read by what comes behind it."""

    share = 0.3

    def __init__(self) -> None:
        super().__init__()
        self.a, self.layers, self.b = (
            nn.Linear(5, 12),
            nn.ModuleList(nn.Linear(12, 12) for _ in range(2)),
            nn.Linear(12, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        for layer in self.layers:
            if self.training:
                draw = torch.rand([])
                if draw < self.share:
                    continue
            y = layer(y).relu()
        return self.b(y)


class DropsLayersByName(DropsLayers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        for layer in self.layers:
            skip = self.training and torch.rand(1).item() < self.share
            if not skip:
                y = layer(y).relu()
        return self.b(y)


class DropsLayersByPython(DropsLayers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        for layer in self.layers:
            if not self.training or random.random() >= self.share:
                y = layer(y).relu()
        return self.b(y)


class ReturnsEarly(DropsLayers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        if self.training and torch.rand(()) < self.share:
            return self.b(y)
        return self.b(self.layers[1](self.layers[0](y)).relu())


class Deep(nn.Module):
    """A module that looks at the mode among many that do not, so that it is tried by itself."""

    def __init__(self, special: nn.Module) -> None:
        super().__init__()
        layers = [layer for _ in range(4) for layer in (nn.Linear(12, 12), nn.ReLU())]
        self.body = nn.Sequential(nn.Linear(5, 12), special, *layers, nn.Linear(12, 3))

    def forward(self, x: torch.Tensor) -> Any:
        return self.body(x)


class DropPath(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return drop_path(x, 0.2, self.training)


class Dropout(nn.Module):
    """Hands the mode on, also through a function of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return handed_on(nn.functional.dropout(x, 0.2, self.training), training=self.training)


def handed_on(x: torch.Tensor, training: bool) -> torch.Tensor:
    return nn.functional.dropout(x, p=0.1, training=training)


class Centre(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return centred(x, on=self.training)


class Normalise(nn.Module):
    """Looks at the mode in a function that it hands the mode on to."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return normalised(x, training=self.training)


def normalised(x: torch.Tensor, training: bool) -> torch.Tensor:
    return nn.functional.dropout(nn.functional.normalize(x, dim=-1) if training else x, 0.1, training)


class DropsAll(nn.Module):
    """One number decides about all of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.training and torch.rand(()) < 0.3 else x.relu()


@pytest.mark.parametrize("kind", [DropsLayers, DropsLayersByName, DropsLayersByPython])
def test_channels_around_a_layer_that_is_dropped_at_random_go_together(kind: type[DropsLayers]) -> None:
    model = kind()
    gated = assert_exact(model, noise(2, 6, 5), (noise(3, 6, 5),), seeds=4)
    assert units(gated) == {"a": 12}
    model.share = 0.0  # layers that are never dropped may lose different channels
    assert units(prunegate.wrap(model.eval(), noise(2, 6, 5))) == {"a": 12, "layers.0": 12, "layers.1": 12}


def test_channels_around_a_way_out_go_together() -> None:
    assert units(assert_exact(ReturnsEarly(), noise(2, 6, 5), seeds=4)) == {"a": 12, "layers.0": 12}


def follows_training(model: nn.Module) -> bool:
    return any(run.training for run in Trace(model.eval(), ExampleInputs.of(torch.randn(2, 7, 5))).runs)


@pytest.mark.parametrize("kind", [DropsPaths, Drops, Recomputes])
def test_what_only_drops_at_random_is_not_followed(kind: type[Net]) -> None:
    model = kind()
    del model.aux  # no layer that no run reads
    assert not follows_training(model)


@pytest.mark.parametrize("kind", [HasHead, HasLayer, Centres, Chooses, Switches, HoldsANumber, CallsWhatItIsGiven])
def test_what_has_to_do_with_channels_is_followed_and_exact(kind: type[Net]) -> None:
    model = kind()
    if kind is not HasHead:
        del model.aux
    assert follows_training(model)
    if kind is not HoldsANumber:  # whose noise has another form for fewer channels
        assert_exact(model, noise(2, 6, 5), (noise(3, 6, 5),))


@pytest.mark.parametrize("special", [DropPath, Dropout])
def test_a_module_that_only_drops_is_not_followed_wherever_it_is(special: type[nn.Module]) -> None:
    assert not follows_training(Deep(special()))


@pytest.mark.parametrize("special", [Centre, Normalise, DropsAll])
def test_a_module_that_does_more_is_followed_wherever_it_is(special: type[nn.Module]) -> None:
    model = Deep(special())
    assert follows_training(model)
    assert_exact(model, noise(2, 6, 5), (noise(3, 6, 5),))
