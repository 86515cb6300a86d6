"""Structures that models are made of beyond chains of convolutions: each is gated as far as promised, without loss."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import prunegate
from prunegate.gates.masked_functions import MASKED_FUNCTIONS
from prunegate.groups.rules.call import MASKABLE
from prunegate.groups.torch_workarounds.kernels import unfused_layers
from tests.conftest import random_masks, randomise

WIDTH = 24


class GroupedQuery(nn.Module):
    """Six query heads on two key-value heads, with a rotary table and a scale over the width of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(WIDTH, 36), nn.Linear(WIDTH, 12), nn.Linear(WIDTH, 12)
        self.scale, self.out = nn.Parameter(torch.rand(6) + 0.5), nn.Linear(36, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        angle = torch.outer(torch.arange(tokens, dtype=x.dtype), torch.arange(1, 7, dtype=x.dtype)).cos()
        q = self.q(x).view(batch, tokens, -1, 6).transpose(1, 2) * self.scale * angle
        k = self.k(x).view(batch, tokens, -1, 6).transpose(1, 2) * angle
        v = self.v(x).view(batch, tokens, -1, 6).transpose(1, 2)
        k, v = (t.repeat_interleave(3, dim=1) for t in (k, v))
        y = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).reshape(batch, tokens, -1))


class ResponseNorm(nn.Module):
    """Global response normalisation, as in ConvNeXt V2."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, 40), nn.Linear(40, WIDTH)
        self.gamma, self.beta = nn.Parameter(torch.rand(40)), nn.Parameter(torch.rand(40))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.gelu(self.a(x))
        size = torch.linalg.vector_norm(y, dim=1, keepdim=True)
        y = y + self.gamma * (y * (size / (size.mean(-1, keepdim=True) + 1e-6))) + self.beta
        return x + self.b(y)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDTH, 4, 48, dropout=0.0, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x)
        return y


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.a, self.b = nn.LSTM(WIDTH, 20, batch_first=True), nn.Linear(20, 32), nn.Linear(32, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.cell(x)
        return x + self.b(torch.relu(self.a(y)))


class Signal(nn.Module):
    """Convolutions over time, down and up again, with one layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv1d(WIDTH, 16, 4, 2, 1)
        self.twice, self.norm = nn.Conv1d(16, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.up = nn.ConvTranspose1d(16, WIDTH, 4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.twice(torch.tanh(self.twice(self.down(x.transpose(1, 2)))))
        return x + self.up(self.norm(y)).transpose(1, 2)


class Model(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(5, WIDTH), block, nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.block(self.stem(x)))
        return y


BLOCKS: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    # the block, and how many units which group must have
    "grouped query": (GroupedQuery, {"stem": WIDTH, "block.q": 2}),
    "response norm": (ResponseNorm, {"stem": WIDTH, "block.a": 40}),
    "torch's encoder layer": (Encoder, {"stem": WIDTH, "block.layer.self_attn.in_proj_weight": 4,
                              "block.layer.linear1": 48}),
    "recurrent": (Recurrent, {"stem": WIDTH, "block.cell.weight_ih_l0": 20, "block.a": 32}),
    "signal": (Signal, {"stem": WIDTH}),
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("backend", ["module", "graph"])
def test_a_structure_is_gated_as_promised_and_compacts_without_loss(name: str, backend: str) -> None:
    make, expected = BLOCKS[name]
    model = randomise(Model(make()), 0).double().eval()
    gated = prunegate.wrap(model, torch.randn(2, 8, 5, dtype=torch.float64), backend=backend)
    found = {group.name: group.num_units for group in gated.groups}
    assert expected.items() <= found.items(), (found, [str(p.reason) for p in gated.pinned])
    for seed, density in enumerate((0.3, 0.5, 0.8)):
        gated.set_masks(random_masks(gated.groups, density, seed))
        compact = prunegate.compact(gated).model.eval()
        x = torch.randn(3, 8, 5, dtype=torch.float64)
        for kernels in (unfused_layers(), nullcontext()):  # torch's encoder layer has a fused one for inference
            with kernels, torch.no_grad():
                a, b = gated.eval()(x), compact(x)
            assert float((a - b).abs().max()) <= 1e-9 * float(a.abs().max())


def test_weights_that_a_hook_computes_before_each_forward() -> None:
    with pytest.warns(FutureWarning, match="deprecated"):
        first, second = (nn.utils.weight_norm(nn.Linear(*sizes)) for sizes in ((WIDTH, 16), (16, WIDTH)))
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(WIDTH, 3)).double()
    inputs = torch.randn(2, WIDTH).double()
    model(inputs)  # leaves weights in attributes that carry gradients, which `copy.deepcopy` refuses
    gated = prunegate.wrap(model, inputs)
    assert [group.num_units for group in gated.groups] == [16, WIDTH]
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    compact = prunegate.compact(gated).model
    assert compact[0].weight_v.shape == (int(gated.masks()[gated.groups[0].name].sum()), WIDTH)
    torch.testing.assert_close(compact(inputs), gated(inputs), rtol=1e-9, atol=1e-12)


def test_a_model_that_cannot_be_copied_is_refused_with_the_way_out() -> None:
    model = Model(nn.ReLU())
    model.lock = threading.Lock()
    with pytest.raises(prunegate.TraceError, match="cannot be copied: cannot pickle"):
        prunegate.wrap(model, torch.randn(2, WIDTH))


@dataclass
class Output:
    scores: torch.Tensor
    parts: list[torch.Tensor]


@pytest.mark.parametrize("backend", ["module", "graph"])
def test_several_inputs_and_outputs_of_any_form(backend: str) -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 16), nn.Linear(7, 16), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor, *, others: dict[str, torch.Tensor]) -> Output:
            y = torch.cos(self.a(x) + self.b(others["y"]))
            return Output(self.c(y), [self.c(y.flip(0)), y.mean(1)])

    model = randomise(Several(), 0).double().eval()

    def inputs(batch: int) -> dict[str, Any]:
        x, y = torch.randn(batch, 5, dtype=torch.float64), torch.randn(batch, 7, dtype=torch.float64)
        return {"x": x, "others": {"y": y}}

    gated = prunegate.wrap(model, inputs(2), backend=backend)
    assert {group.name: group.num_units for group in gated.groups} == {"a": 16}
    gated.set_masks({"a": torch.arange(16) % 3 != 1})
    compact, given = prunegate.compact(gated).model.eval(), inputs(4)
    expected, found = gated.eval()(**given), compact(**given)
    assert isinstance(found, Output)
    for a, b in zip((expected.scores, *expected.parts), (found.scores, *found.parts), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_a_model_whose_shapes_depend_on_values_is_followed_on_real_tensors() -> None:
    class Picking(nn.Module):
        """Works on the samples that it scores above zero only."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 16), nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            chosen = x[x.sum(1) > 0]
            return self.c(torch.relu(self.b(torch.relu(self.a(chosen))))).sum(0)

    torch.manual_seed(0)
    gated = prunegate.wrap(Picking().double().eval(), torch.randn(9, 5, dtype=torch.float64))
    assert not gated.trace.is_fake
    assert {group.name for group in gated.groups} == {"a", "b"}
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    x = torch.randn(30, 5, dtype=torch.float64)
    with torch.no_grad():
        a, b = gated.eval()(x), prunegate.compact(gated).model(x)
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("attention", "attribute"), [("finest", "head_dim"), ("heads", "num_heads")])
def test_size_attributes_keep_a_models_own_code(attention: str, attribute: str) -> None:
    """A transformer that holds its sizes as attributes needs no replay, and takes other images then."""
    import timm

    gated = prunegate.wrap(timm.create_model("test_vit", dynamic_img_size=True).double().eval(),
                           torch.randn(2, 3, 160, 160, dtype=torch.float64), attention=attention)  # fmt: skip
    gated.set_masks(random_masks(gated.groups, 0.5, 1))
    result = prunegate.compact(gated)
    assert result.fix_ups.is_plain
    kept = int(gated.masks()["blocks.0.attn.qkv"].sum())
    assert result.plan.attributes["blocks.0.attn"][attribute] == kept
    x = torch.randn(1, 3, 128, 96, dtype=torch.float64)
    with torch.no_grad():
        a, b = gated.eval()(x), result.model.eval()(x)
    assert float((a - b).abs().max()) <= 1e-9 * float(a.abs().max())


def test_every_function_with_a_masked_form_may_be_masked() -> None:
    assert set(MASKED_FUNCTIONS) <= MASKABLE
