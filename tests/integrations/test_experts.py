"""Mixtures of experts of transformers in their default implementation, a kernel that takes some widths only."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import prunegate
from tests.wrapping.exactness import units

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "use_cache": False,
}


def mixtral() -> Any:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(intermediate_size=48, num_local_experts=4, num_experts_per_tok=2, **SIZES)
    return transformers.MixtralForCausalLM(config).eval()


def tokens(samples: int = 2, length: int = 7) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(samples + length)
    return {"input_ids": torch.randint(64, (samples, length), generator=generator)}


EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"


@pytest.fixture(scope="module")
def gated() -> prunegate.GatedModel:
    return prunegate.wrap(mixtral(), tokens())


@pytest.mark.parametrize("multiples", [True, False])
def test_the_width_of_experts_is_gated_and_compacts_without_loss(gated: prunegate.GatedModel, multiples: bool) -> None:
    """Also to widths that the kernel does not take: it gets zeros beside them."""
    assert units(gated) == {"model.embed_tokens": 32, "model.layers.0.self_attn.q_proj": 2, EXPERTS: 48}
    assert {group.name: group.multiple for group in gated.groups}[EXPERTS] == 8
    generator = torch.Generator().manual_seed(0)
    masks = {}
    for group in gated.groups:
        kept = group.num_units // 2 // group.multiple * group.multiple - (0 if multiples else 3)
        masks[group.name] = torch.zeros(group.num_units, dtype=torch.bool)
        masks[group.name][torch.randperm(group.num_units, generator=generator)[: max(kept, 1)]] = True
    gated.set_masks(masks)
    result = prunegate.compact(gated)
    assert isinstance(result.model, transformers.MixtralForCausalLM)
    assert not result.certificate.not_checked
    assert result.certificate.float64 is not None
    assert result.certificate.float64.max_rel <= 1e-9
    inputs = tokens(3, 9)
    with torch.no_grad():
        expected, found = gated(**inputs).logits, result.model(**inputs).logits
    assert float((expected - found).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_a_budget_is_met_with_such_widths(gated: prunegate.GatedModel) -> None:
    gated.harden(prunegate.Budget("params", 0.6))
    kept = {name: int(mask.sum()) for name, mask in gated.masks().items()}
    assert kept[EXPERTS] % 8 == 0
    assert kept["model.embed_tokens"] % 8 == 0
    assert gated.realised_cost("params") <= 0.6 * gated.dense_cost("params")
