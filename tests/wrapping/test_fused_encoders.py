"""Torch's attention and encoder layers, whose fused kernels for inference pass by what a gated or cut model needs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch import nn

import prunegate
from tests.conftest import random_masks

WIDTH = 24
TOLERANCE = 2e-5  # single precision: torch has fused kernels for that


class Model(nn.Module):
    """An encoder, one of its layers or its attention between two layers; the padding mask is an argument."""

    def __init__(self, inside: nn.Module, batch_first: bool = True, causal: bool = False) -> None:
        super().__init__()
        self.stem, self.inside, self.head = nn.Linear(5, WIDTH), inside, nn.Linear(WIDTH, 3)
        self.batch_first, self.causal = batch_first, causal

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        y = y if self.batch_first else y.transpose(0, 1)
        if isinstance(self.inside, nn.MultiheadAttention):
            y, _ = self.inside(y, y, y, key_padding_mask=padding, need_weights=False)
        elif self.causal:
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            y = self.inside(y, mask, src_key_padding_mask=padding, is_causal=True)
        else:
            y = self.inside(y, src_key_padding_mask=padding)
        out: torch.Tensor = self.head(y if self.batch_first else y.transpose(0, 1))
        return out


def layer(heads: int = 4, batch_first: bool = True, norm_first: bool = False) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(WIDTH, heads, 32, 0.0, batch_first=batch_first, norm_first=norm_first)


def encoder(nested: bool = True, norm: bool = False, **kwargs: bool | int) -> nn.TransformerEncoder:
    final = nn.LayerNorm(WIDTH) if norm else None
    return nn.TransformerEncoder(layer(**kwargs), 2, final, enable_nested_tensor=nested)  # type: ignore[arg-type]


MODELS: dict[str, Callable[[], Model]] = {
    "encoder that packs": lambda: Model(encoder()),
    "encoder that packs, and a last norm": lambda: Model(encoder(norm=True)),
    "encoder that does not pack": lambda: Model(encoder(nested=False)),
    "encoder, norm first": lambda: Model(encoder(nested=False, norm_first=True)),
    "encoder, batch second": lambda: Model(encoder(nested=False, batch_first=False), batch_first=False),
    "encoder, odd heads": lambda: Model(encoder(nested=False, heads=3)),
    "encoder, causal": lambda: Model(encoder(), causal=True),
    "layer": lambda: Model(layer()),
    "layer, norm first and batch second": lambda: Model(layer(norm_first=True, batch_first=False), batch_first=False),
    "attention": lambda: Model(nn.MultiheadAttention(WIDTH, 4, batch_first=True)),
    "attention, odd heads": lambda: Model(nn.MultiheadAttention(WIDTH, 3, batch_first=True)),
}


def padded(longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three sequences, and which of their seven positions are padding."""
    x = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(longest))
    return x, torch.arange(7) >= torch.tensor([[longest], [4], [longest]])


def assert_agree(a: torch.Tensor, b: torch.Tensor, kept: torch.Tensor | None = None) -> None:
    assert a.shape == b.shape
    a, b = (t.detach() if kept is None else t.detach()[kept] for t in (a, b))
    assert float((a - b).abs().max()) <= TOLERANCE * float(a.abs().max())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("exclude", [[], ["stem"]], ids=["all", "hidden"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_dense_gated_and_compact_agree_where_nothing_is_padded(name: str, exclude: list[str]) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    gated = prunegate.wrap(model, padded(7), exclude=exclude if "layer" in name or "encoder" in name else [])
    half, every = random_masks(gated.groups, 0.5, 0), {g.name: torch.ones(g.num_units) > 0 for g in gated.groups}
    gated.set_masks(half)
    result = prunegate.compact(gated)
    modes: list[Callable[[], AbstractContextManager[object]]] = [torch.no_grad, torch.enable_grad, torch.inference_mode]
    fast = torch.backends.mha.get_fastpath_enabled()
    for training in (False, True):
        for mode in modes:
            for x, padding in (padded(7), padded(5)):
                with mode():
                    gated.set_masks(every)
                    assert_agree(model.train(training)(x, padding), gated.train(training)(x, padding), ~padding)
                    gated.set_masks(half)
                    assert_agree(gated(x, padding), result.model.train(training)(x, padding))
    assert torch.backends.mha.get_fastpath_enabled() == fast


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_copy_and_a_loaded_model_keep_out_of_the_kernels_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Model(encoder()).eval()
    gated = prunegate.wrap(model, padded(7))
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    result = prunegate.compact(gated)
    result.save(tmp_path / "compact.safetensors")
    loaded = prunegate.load(tmp_path / "compact.safetensors", model=Model(encoder()))
    compact = result.model.eval()
    with torch.no_grad():
        for again in (copy.deepcopy(compact), loaded.eval()):
            for x, padding in (padded(7), padded(5)):
                assert_agree(compact(x, padding), again(x, padding))


def test_the_users_own_encoder_still_packs() -> None:
    torch.manual_seed(0)
    model = Model(encoder()).eval()
    gated = prunegate.wrap(model, padded(7))
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    prunegate.compact(gated)
    assert isinstance(model.inside, nn.TransformerEncoder)
    assert model.inside.use_nested_tensor
    assert all(one.activation_relu_or_gelu for one in model.inside.layers)
    assert gated.unwrap().inside.use_nested_tensor
