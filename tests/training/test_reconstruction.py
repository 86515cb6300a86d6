"""Refitting against plain least squares, and layers that are not refitted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import prunegate
from prunegate import GatedModel, LoopError
from prunegate.training import reconstruct
from tests.conftest import SmallNet, random_masks, randomise


class Pair(nn.Module):
    """A layer that loses outputs, and the one that reads them."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.second(self.first(x).relu())
        return y


def halved(net: nn.Module, x: torch.Tensor, seed: int = 0) -> GatedModel:
    gated = prunegate.wrap(net, x[:2])
    gated.set_masks(random_masks(gated.groups, 0.5, seed))
    return gated.eval()


def samples(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def error(gated: nn.Module, dense: nn.Module, x: torch.Tensor) -> float:
    return float((gated(x) - dense(x)).square().mean())


def test_what_the_kept_inputs_determine_is_computed_again() -> None:
    torch.manual_seed(0)
    net = Pair(nn.Linear(3, 8), nn.Linear(8, 5)).double()
    with torch.no_grad():
        for parameter in net.first.parameters():
            parameter[4:] = 2 * parameter[:4]
    x = samples(400, 3)
    gated = prunegate.wrap(net, x[:2])
    gated.set_masks({"first": torch.arange(8) < 4})
    before = error(gated, net, x)
    assert reconstruct(gated, net, x) == 2
    assert error(gated, net, x) < 1e-3 * before  # the ridge leaves a little


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(1, 1), (3, 1), (3, 2), (2, 3)]),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.integers(1, 2), st.integers(1, 3)),
    st.booleans(),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 99),
)
def test_convolutions_get_the_weights_of_ridge_regression(
    kernel: tuple[int, int], padding: tuple[int, int], stride: tuple[int, int], bias: bool, groups: int, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = nn.Conv2d(8, 8, kernel, stride, padding, dilation=(2, 1), groups=groups, bias=bias)
    net = Pair(nn.Conv2d(2, 8, 1), nn.Sequential(layer, nn.ReLU(), nn.Conv2d(8, 3, 1)))
    net = randomise(net, seed).double().eval()
    x = samples(40, 2, 9, 7, seed=seed)
    gated = halved(net, x, seed)
    refitted = gated.model.second[0]
    masks = gated.sites.masks_of("second.0.weight", gated.gates.hard_mask().double())
    _, unfitted = call_of(refitted, gated, x)
    reconstruct(gated, net, x)
    solved: list[torch.Tensor] = []
    (inputs, found), (_, target) = call_of(refitted, gated, x), call_of(layer, net, x)
    read = refitted.weight
    for axis, mask in masks.items():  # the weight as the model reads it
        read = read * mask.reshape([-1 if dim == axis else 1 for dim in range(4)])
    columns = F.unfold(inputs, kernel, (2, 1), padding, stride).transpose(1, 2).flatten(0, 1)
    for part, rows, dense, new in zip(
        columns.chunk(groups, 1),
        by_channel(target).chunk(groups, 1),
        layer.weight.flatten(1).chunk(groups),
        read.flatten(1).chunk(groups),
        strict=True,
    ):
        kept = new.ne(0).any(0)
        a, start = part[:, kept], dense[:, kept]
        if bias:
            of_group = layer.bias.reshape(groups, -1)[len(solved)]
            a, start = torch.cat([a, a.new_ones(len(a), 1)], 1), torch.cat([start, of_group[:, None]], 1)
        ridge = 1e-3 * a.square().sum(0).mean()
        a = torch.cat([a, ridge.sqrt() * torch.eye(a.shape[1], dtype=a.dtype)])
        best = torch.linalg.lstsq(a, torch.cat([rows, ridge.sqrt() * start.T]), driver="gelsd").solution.T
        solved.append(best[:, :-1] if bias else best)
        torch.testing.assert_close(new[:, kept], solved[-1], rtol=1e-6, atol=1e-9)
    assert float((found - target).norm()) <= float((unfitted - target).norm()) + 1e-9


@torch.no_grad()
def call_of(layer: nn.Module, model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a layer is given when the model runs, and what it makes of it."""
    calls = []
    hook = layer.register_forward_hook(lambda _, args, output: calls.append((args[0], output)))
    model(x)
    hook.remove()
    return calls[0]


def by_channel(images: torch.Tensor) -> torch.Tensor:
    return images.permute(0, 2, 3, 1).flatten(0, 2)


def test_layers_are_refitted_on_what_refitted_ones_give_them(small_net: nn.Module) -> None:
    x = samples(200, 3, 7, 7)
    gated = halved(small_net, x)
    before = error(gated, small_net, x)
    dense = copy.deepcopy(small_net.state_dict())
    modes = [module.training for module in gated.modules()]
    assert reconstruct(gated, small_net, x) == 6
    prunegate.training.reestimate_batch_norm(gated, [x])
    assert error(gated, small_net, x) < 0.5 * before
    assert error(gated, small_net, samples(200, 3, 7, 7, seed=1)) < 0.6 * before
    assert prunegate.compact(gated).certificate.float64.max_rel <= 1e-9
    assert modes == [module.training for module in gated.modules()]
    assert all(torch.equal(dense[name], tensor) for name, tensor in small_net.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in gated.model.modules())


def test_nothing_changes_where_nothing_is_masked() -> None:
    torch.manual_seed(0)
    net = Pair(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)).double()
    x = samples(50, 3, 7, 7)
    gated = prunegate.wrap(net, x[:2])
    gated.set_masks({"first": torch.ones(8)})
    assert reconstruct(gated, net, x) == 2
    for name, parameter in gated.dense_copy().named_parameters():
        torch.testing.assert_close(parameter, net.get_parameter(name))


def test_a_language_model_is_refitted_on_inputs_by_name() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    net = randomise(transformers.BertModel(transformers.BertConfig(vocab_size=100, **sizes))).double().eval()
    tokens = torch.randint(100, (60, 12), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    gated = prunegate.wrap(net, {name: tensor[:2] for name, tensor in inputs.items()})
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    dense = net(**inputs).last_hidden_state.detach()
    before = (gated(**inputs).last_hidden_state - dense).norm()
    assert reconstruct(gated, net, inputs) == 12  # six in each layer; the pooler has one token of each text
    assert (gated(**inputs).last_hidden_state - dense).norm() < 0.9 * before


class Twice(nn.Module):
    """The second layer runs twice, or its weights serve another, or they are no plain factor."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second, self.third = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)
        if kind == "tied":
            self.third.weight = self.second.weight
        if kind == "weight_norm":
            torch.nn.utils.parametrizations.weight_norm(self.second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        x = self.second(self.second(x).relu()) if self.kind == "twice" else self.second(x)
        y: torch.Tensor = self.head(self.third(x.relu()).relu())
        return y


@pytest.mark.parametrize(("kind", "layers"), [("plain", 4), ("twice", 3), ("tied", 2), ("weight_norm", 3)])
def test_layers_whose_weights_are_not_theirs_alone_are_left_as_they_are(kind: str, layers: int) -> None:
    torch.manual_seed(0)
    net = Twice(kind).double().eval()
    x = samples(200, 3)
    gated = halved(net, x)
    second = [p.clone() for p in gated.model.second.parameters()]
    assert reconstruct(gated, net, x) == layers
    same = [torch.equal(a, b) for a, b in zip(second, gated.model.second.parameters(), strict=True)]
    assert all(same) == (kind != "plain")


def test_layers_with_too_few_samples_are_left_as_they_are() -> None:
    net = Pair(nn.Linear(3, 8), nn.Linear(8, 5)).double()
    x = samples(20, 3)  # four for each of three unknowns, but not of eight
    gated = halved(net, x)
    before = copy.deepcopy(gated.model.second.state_dict())
    assert reconstruct(gated, net, x) == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in gated.model.second.state_dict().items())


def wrong(net: nn.Module) -> nn.Module:
    return Pair(nn.Linear(3, 8), nn.Linear(8, 6)).double()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            wrong,
            r"reconstruct: second: found a weight of shape \(6, 8\) .* expected one of shape \(5, 8\).*was wrapped",
        ),
        (lambda net: net.first, r"reconstruct: first: found no weight in the dense model"),
    ],
)
def test_another_model_than_the_dense_one_is_refused(other: Callable[[nn.Module], nn.Module], message: str) -> None:
    net: Any = Pair(nn.Linear(3, 8), nn.Linear(8, 5)).double()
    x = samples(100, 3)
    with pytest.raises(LoopError, match=message):
        reconstruct(halved(net, x), other(net), x)


def test_masks_that_are_drawn_are_refused() -> None:
    net = SmallNet()
    with pytest.raises(LoopError, match=r"expected fixed ones.*gated\.harden\(budget\)"):
        reconstruct(prunegate.wrap(net, torch.zeros(2, 3, 8, 8)), net, torch.zeros(8, 3, 8, 8))
