"""Attention by torch's function, called from a model's own code with weights of layers of its own."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunegate
from tests.conftest import random_masks
from tests.wrapping.exactness import assert_exact, noise, units


class Pool(nn.Module):
    """As the attention pooling of CLIP's ResNets: the first token is the mean of all, and attends to all."""

    def __init__(self, apart: bool, need_weights: bool) -> None:
        super().__init__()
        self.apart, self.need_weights, self.num_heads = apart, need_weights, 4
        self.stem, self.head = nn.Linear(5, 24), nn.Linear(7, 3)
        if apart:
            self.q, self.k, self.v = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 24)
        else:
            self.qkv = nn.Linear(24, 72)
        self.out = nn.Linear(24, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).transpose(0, 1)
        x = torch.cat([x.mean(0, keepdim=True), x])
        weights: dict[str, Any] = {}
        if self.apart:
            weights = {f"{part}_proj_weight": getattr(self, part).weight for part in "qkv"}
        y, scores = F.multi_head_attention_forward(
            x, x, x, x.shape[-1], self.num_heads,
            in_proj_weight=None if self.apart else self.qkv.weight,
            in_proj_bias=torch.cat([self.q.bias, self.k.bias, self.v.bias]) if self.apart else self.qkv.bias,
            bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.1,
            out_proj_weight=self.out.weight, out_proj_bias=self.out.bias,
            use_separate_proj_weight=self.apart, training=self.training, need_weights=self.need_weights, **weights,
        )  # fmt: skip
        z: torch.Tensor = self.head(y[0])
        return z if scores is None else z * scores.amax()


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_an_attention_called_by_a_models_own_code_is_cut_without_loss(
    apart: bool, need_weights: bool, tmp_path: Path
) -> None:
    gated = assert_exact(Pool(apart, need_weights), noise(2, 7, 5), (noise(3, 4, 5),))
    heads = {} if need_weights else {"q" if apart else "qkv": 4}  # their mean is used
    assert units(gated) == {"stem": 24, "out": 7, **heads}
    assert not gated.fix_ups.replays
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    result = prunegate.compact(gated)
    result.save(tmp_path / "compact.safetensors")
    loaded = prunegate.load(tmp_path / "compact.safetensors", model=Pool(apart, need_weights).double())
    model, x = result.model.eval(), noise(3, 11, 5)
    with torch.no_grad():
        expected = model(x)
        for again in (loaded.eval(), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(again(x), expected)
        torch._dynamo.reset()
        compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-12, atol=1e-12)
