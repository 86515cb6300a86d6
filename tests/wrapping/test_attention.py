"""Models whose own code cannot run on smaller tensors: both back-ends, training, saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunegate
from prunegate.compaction import FixUps, rebuild
from prunegate.errors import TraceError
from prunegate.gates.masked_functions import call_masked
from prunegate.groups import ExampleInputs, copy_with, on_meta
from tests.conftest import random_masks, randomise


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, sums: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.sums = sums
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        if self.sums:
            x = x.cumsum(-1)
        return self.out(x.transpose(1, 2).reshape(batch, tokens, width))


class Transformer(nn.Module):
    def __init__(self, width: int = 24, heads: int = 4, sums: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(5, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, sums)
        self.hidden, self.back = nn.Linear(width, 32), nn.Linear(32, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.attention(self.norm1(x))
        x = x + self.back(nn.functional.gelu(self.hidden(self.norm2(x))))
        return self.head(x.mean(1))


def tokens(batch: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gated_transformer(backend: str, attention: str = "finest") -> prunegate.GatedModel:
    model = randomise(Transformer(), 0).double().eval()
    gated = prunegate.wrap(model, tokens(2), backend=backend, attention=attention)
    gated.set_masks(random_masks(gated.groups, 0.5, 1))
    return gated


both_units = pytest.mark.parametrize("attention", ["finest", "heads"])


@pytest.mark.parametrize("backend", ["module", "graph", "auto"])
@both_units
def test_stream_attention_and_hidden_width_compact_without_loss(backend: str, attention: str) -> None:
    gated = gated_transformer(backend, attention)
    units = {"finest": 6, "heads": 4}[attention]  # four heads of six places
    assert sorted(group.num_units for group in gated.groups) == [units, 24, 32]
    assert f"attention.qkv: {units} units of {72 // units} channels each" in str(gated.explain())
    result = prunegate.compact(gated)
    assert isinstance(result.model, torch.fx.GraphModule if backend == "graph" else Transformer)
    assert set(result.model.state_dict()) == set(Transformer().state_dict())
    with torch.no_grad():
        for batch in (1, 5):
            torch.testing.assert_close(result.model(tokens(batch)), gated(tokens(batch)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", ["module", "graph"])
@both_units
def test_one_optimisation_step_changes_both_alike(backend: str, attention: str) -> None:
    gated = gated_transformer(backend, attention).train()
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
@both_units
def test_what_is_replayed_is_saved_as_a_plan_and_loaded(backend: str, attention: str, tmp_path: Path) -> None:
    result = prunegate.compact(gated_transformer(backend, attention))
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
            return self.b(x) + torch.ops.aten.slice(x, -1, 2, 3)

    gated = prunegate.wrap(Picks().double().eval(), tokens(2))
    assert gated.backend == "graph"
    assert [group.num_units for group in gated.groups] == [7]


def test_what_was_saved_before_there_was_a_choice_has_whole_heads() -> None:
    result = prunegate.compact(gated_transformer("module", "heads"))
    stored = result.fix_ups.as_dict()
    assert stored.pop("whole_heads") == ["attention"]
    before = FixUps.from_dict(stored)
    loaded = rebuild(copy_with(Transformer().double(), on_meta), result.plan, before, ExampleInputs.of(tokens(2)))
    loaded.load_state_dict(result.model.state_dict(), assign=True)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(tokens(3)), result.model.eval()(tokens(3)))


def test_heads_go_as_wholes_where_they_are_more_than_their_places() -> None:
    gated = prunegate.wrap(Transformer(width=24, heads=6), tokens(2).float())
    assert sorted(group.num_units for group in gated.groups) == [6, 24, 32]


def test_heads_go_as_wholes_where_something_else_needs_their_width() -> None:
    """A sum within each head needs all of its places; queries, keys and values share one layer."""
    gated = prunegate.wrap(randomise(Transformer(sums=True), 0).double().eval(), tokens(2))
    assert sorted(group.num_units for group in gated.groups) == [4, 24, 32]
    gated.set_masks(random_masks(gated.groups, 0.5, 1))
    with torch.no_grad():
        torch.testing.assert_close(prunegate.compact(gated).model(tokens(3)), gated(tokens(3)), rtol=1e-9, atol=1e-12)


def test_heads_go_as_wholes_where_the_code_cannot_do_without_their_width() -> None:
    class Stubborn(Transformer):
        """Its block is the model itself, which cannot be replayed, and it calls an operation by itself."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            view = torch.ops.aten._unsafe_view
            q, k, v = (t.contiguous() for t in self.attention.qkv(self.stem(x)).chunk(3, dim=-1))
            q, k, v = (view(t, [*t.shape[:2], -1, 6]).transpose(1, 2) for t in (q, k, v))
            x = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            return self.head(self.attention.out(x.flatten(2)).mean(1))

    gated = prunegate.wrap(randomise(Stubborn(), 0).double().eval(), tokens(2), backend="module")
    assert gated.fix_ups.whole_heads == ("",)
    assert next(group.num_units for group in gated.groups if group.name == "attention.qkv") == 4
    gated.set_masks(random_masks(gated.groups, 0.5, 1))
    with torch.no_grad():
        torch.testing.assert_close(prunegate.compact(gated).model(tokens(3)), gated(tokens(3)), rtol=1e-9, atol=1e-12)


def test_an_unknown_unit_of_attention_is_refused() -> None:
    with pytest.raises(TraceError, match="attention: found 'width', expected one of finest, heads"):
        prunegate.wrap(Transformer(), tokens(2).float(), attention="width")


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_masked_attention_is_that_of_narrower_heads(scale: float | None, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 7, 6, dtype=dtype, generator=generator) for _ in range(3))
    mask = torch.tensor([True, False, True, True, False, True])
    function = nn.functional.scaled_dot_product_attention
    masks = {0: mask.to(torch.float32).reshape(1, 1, 1, -1)}
    found = call_masked("scaled_dot_product_attention", function, (q, k, v), {"scale": scale}, masks)
    expected = function(q[..., mask], k[..., mask], v, scale=scale)
    assert found.dtype == dtype
    exactness = {torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found, expected, rtol=exactness, atol=exactness)


class SeparateAttention(nn.Module):
    """Queries, keys and values of layers of their own, with fewer heads of keys and values, and one width for all."""

    def __init__(self, width: int = 24, heads: int = 4, shared_heads: int = 2) -> None:
        super().__init__()
        self.head_width = width // heads
        self.stem, self.head = nn.Linear(5, width), nn.Linear(width, 3)
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = (nn.Linear(width, shared_heads * self.head_width) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.head(x + self.out(y.transpose(1, 2).flatten(2)))


def test_queries_keys_and_values_keep_one_width_that_the_models_code_can_follow() -> None:
    gated = prunegate.wrap(randomise(SeparateAttention(), 0).double().eval(), tokens(2))
    assert gated.fix_ups.is_plain
    group = next(group for group in gated.groups if group.name == "query")
    assert group.num_units == 6
    assert {"query", "key", "value", "out"} == {member.module for member in group.members}
    assert_exact_on_longer(gated, samples=2)


def assert_exact_on_longer(gated: prunegate.GatedModel, samples: int) -> None:
    """Half of the units are removed, and both models see more tokens than they were wrapped with."""
    gated.set_masks(random_masks(gated.groups, 0.5, 1))
    compact = prunegate.compact(gated).model
    longer = torch.randn(samples, 11, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(compact(longer), gated(longer), rtol=1e-9, atol=1e-12)


class SparseAttention(SeparateAttention):
    """Only the queries that stand out attend, picked by an index over samples and heads; others get a running mean."""

    def __init__(self) -> None:
        super().__init__(shared_heads=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        batch, length, _ = x.shape
        q, k, v = (
            layer(x).view(batch, length, 4, self.head_width).transpose(1, 2).reshape(-1, length, self.head_width)
            for layer in (self.query, self.key, self.value)
        )
        chosen = torch.bmm(q, k.transpose(1, 2)).amax(-1).topk(3)[1]
        rows = torch.arange(q.shape[0]).unsqueeze(-1)
        mask = torch.ones(length, length, dtype=x.dtype).tril().log().expand(batch, 4, -1, -1).flatten(0, 1)
        weights = (torch.bmm(q[rows, chosen], k.transpose(1, 2)) + mask[rows, chosen]).softmax(-1)
        y = v.cumsum(1)
        y[rows, chosen] = torch.bmm(weights, v)
        if y.shape[-1] != self.head_width:
            raise ValueError(f"heads of {y.shape[-1]}, expected {self.head_width}")
        y = y.view(batch, 4, length, self.head_width).transpose(1, 2)
        return self.head(x + self.out(y.flatten(2)))


def test_values_keep_the_width_of_queries_that_an_index_picked() -> None:
    gated = prunegate.wrap(randomise(SparseAttention(), 0).double().eval(), tokens(2))
    assert gated.fix_ups.is_plain
    group = next(group for group in gated.groups if group.num_units == 6)
    assert {"query", "key", "value", "out"} == {member.module for member in group.members}
    assert_exact_on_longer(gated, samples=3)
