"""Models whose own code cannot follow smaller tensors: both back-ends, training, saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunegate
from tests.conftest import random_masks, randomise


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(x.transpose(1, 2).reshape(batch, tokens, width))


class Transformer(nn.Module):
    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.stem = nn.Linear(5, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.hidden, self.back = nn.Linear(width, 32), nn.Linear(32, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.attention(self.norm1(x))
        x = x + self.back(nn.functional.gelu(self.hidden(self.norm2(x))))
        return self.head(x.mean(1))


def tokens(batch: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gated_transformer(backend: str) -> prunegate.GatedModel:
    model = randomise(Transformer(), 0).double().eval()
    gated = prunegate.wrap(model, tokens(2), backend=backend)
    gated.set_masks(random_masks(gated.groups, 0.5, 1))
    return gated


@pytest.mark.parametrize("backend", ["module", "graph", "auto"])
def test_stream_heads_and_hidden_width_compact_without_loss(backend: str) -> None:
    gated = gated_transformer(backend)
    assert sorted(group.num_units for group in gated.groups) == [4, 24, 32]
    result = prunegate.compact(gated)
    assert isinstance(result.model, torch.fx.GraphModule if backend == "graph" else Transformer)
    assert set(result.model.state_dict()) == set(Transformer().state_dict())
    with torch.no_grad():
        for batch in (1, 5):
            torch.testing.assert_close(result.model(tokens(batch)), gated(tokens(batch)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", ["module", "graph"])
def test_one_optimisation_step_changes_both_alike(backend: str) -> None:
    gated = gated_transformer(backend).train()
    compact = prunegate.compact(gated).model.train()
    outputs = []
    for model, weights in ((gated, gated.weight_parameters()), (compact, compact.parameters())):
        optimizer = torch.optim.SGD(list(weights), lr=0.05)
        model(tokens(4)).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            outputs.append(model(tokens(3, seed=1)))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", ["module", "graph"])
def test_what_is_played_back_is_saved_as_a_plan_and_loaded(backend: str, tmp_path: Path) -> None:
    result = prunegate.compact(gated_transformer(backend))
    result.save(tmp_path / "compact.safetensors")
    loaded: Any = prunegate.load(tmp_path / "compact.safetensors", model=Transformer().double())
    with torch.no_grad():
        assert torch.equal(loaded(tokens(3)), result.model.eval()(tokens(3)))


@pytest.mark.parametrize("backend", ["module", "graph"])
def test_a_gated_model_is_trained_through_its_masked_statistics(backend: str) -> None:
    gated = prunegate.wrap(Transformer(), tokens(2).float(), backend=backend)
    gated.train()(tokens(4).float()).square().mean().backward()
    assert torch.count_nonzero(gated.gates.logits.grad) == gated.gates.logits.numel()


def test_a_position_in_the_code_is_honoured_by_the_graph() -> None:
    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            return self.b(x) + x[..., 2:3]

    gated = prunegate.wrap(Picks().double().eval(), tokens(2))
    assert gated.backend == "graph"
    assert [group.num_units for group in gated.groups] == [7]
