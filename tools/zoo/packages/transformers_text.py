"""Language models of transformers: encoders, decoders, mixtures of experts, state spaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .case import PackageCase, token_ids, words

# Sizes that differ from each other, so that no dimension passes for another one.
_TEXT: dict[str, Any] = {"vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_ENCODER: dict[str, Any] = {
    **_TEXT,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 88,
    "max_position_embeddings": 64,
}
_DECODER: dict[str, Any] = {**_ENCODER, "num_attention_heads": 8, "num_key_value_heads": 4, "use_cache": False}
_EXPERTS: dict[str, Any] = {**_DECODER, "num_experts_per_tok": 2}


def model(config: str, cls: str, **settings: Any) -> Callable[[], nn.Module]:
    """A builder of a model of transformers, named by its classes."""

    def build() -> nn.Module:
        import transformers

        made: nn.Module = getattr(transformers, cls)(getattr(transformers, f"{config}Config")(**settings))
        return made

    return build


def _text(config: str, cls: str, size: int = 11, other: int | None = 17, **settings: Any) -> PackageCase:
    return PackageCase(model(config, cls, **settings), words, size, other)


def _two_texts(batch: int, length: int) -> dict[str, torch.Tensor]:
    return {"input_ids": token_ids(batch, length), "decoder_input_ids": token_ids(batch, length - 2)}


def _boxes(batch: int, length: int) -> dict[str, torch.Tensor]:
    corners = torch.randint(0, 50, (batch, length, 2))
    return {**words(batch, length), "bbox": torch.cat([corners, corners + 9], -1)}


CASES: dict[str, PackageCase] = {
    "transformers/albert": _text("Albert", "AlbertForMaskedLM", **_ENCODER, embedding_size=24),
    "transformers/bart": PackageCase(
        model(
            "Bart", "BartForConditionalGeneration", **_TEXT, d_model=64, encoder_layers=2, decoder_layers=2,
            encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=88, decoder_ffn_dim=72,
            max_position_embeddings=64, use_cache=False, decoder_start_token_id=1, forced_eos_token_id=2,
        ),
        _two_texts, 11, 17,
    ),
    "transformers/bloom": _text("Bloom", "BloomForCausalLM", **_TEXT, hidden_size=64, n_layer=2, n_head=4,
    use_cache=False),
    "transformers/deberta-v2": _text(
        "DebertaV2", "DebertaV2ForMaskedLM", **_ENCODER, relative_attention=True, position_buckets=8,
        pos_att_type=["p2c", "c2p"],
    ),
    "transformers/deepseek-v3": _text(
        "DeepseekV3", "DeepseekV3ForCausalLM", **{**_EXPERTS, "num_key_value_heads": 8}, n_routed_experts=4, n_group=2,
        topk_group=1, moe_intermediate_size=40, first_k_dense_replace=1, q_lora_rank=32, kv_lora_rank=24,
        qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=14,
    ),
    "transformers/electra": _text("Electra", "ElectraForMaskedLM", **_ENCODER, embedding_size=24),
    "transformers/falcon": _text(
        "Falcon", "FalconForCausalLM", **_TEXT, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        use_cache=False,
    ),
    "transformers/gemma2": _text("Gemma2", "Gemma2ForCausalLM", **_DECODER, head_dim=10, sliding_window=8),
    "transformers/gemma3-text": _text("Gemma3Text", "Gemma3ForCausalLM", **_DECODER, head_dim=10, sliding_window=8),
    "transformers/gpt-neox": _text("GPTNeoX", "GPTNeoXForCausalLM", **_ENCODER, use_cache=False),
    "transformers/gpt-oss": _text(
        "GptOss", "GptOssForCausalLM", **_EXPERTS, head_dim=10, num_local_experts=4, sliding_window=8,
    ),
    "transformers/gpt2": _text("GPT2", "GPT2LMHeadModel", **_TEXT, n_embd=64, n_layer=2, n_head=4, use_cache=False),
    "transformers/layoutlm": PackageCase(
        model("LayoutLM", "LayoutLMForMaskedLM", **_ENCODER, max_2d_position_embeddings=64), _boxes, 11, 17
    ),
    "transformers/longformer": _text(
        "Longformer", "LongformerForMaskedLM", 16, 24, **{**_ENCODER, "pad_token_id": 1, "bos_token_id": 0},
        attention_window=8,
    ),
    "transformers/mamba": _text(
        "Mamba", "MambaForCausalLM", **_TEXT, hidden_size=48, num_hidden_layers=2, state_size=8, use_cache=False,
    ),
    "transformers/mamba2": _text(
        "Mamba2", "Mamba2ForCausalLM", **_TEXT, hidden_size=48, num_hidden_layers=2, state_size=10, num_heads=6,
        head_dim=16, n_groups=2, chunk_size=8, use_cache=False,
    ),
    "transformers/mistral": _text("Mistral", "MistralForCausalLM", **_DECODER, sliding_window=8),
    "transformers/mixtral": _text("Mixtral", "MixtralForCausalLM", **_EXPERTS, num_local_experts=4),
    "transformers/modernbert": _text("ModernBert", "ModernBertForMaskedLM", **_ENCODER, local_attention=8),
    "transformers/mpnet": _text("MPNet", "MPNetForMaskedLM", **_ENCODER),
    "transformers/mt5": PackageCase(
        model(
            "MT5", "MT5ForConditionalGeneration", vocab_size=99, d_model=64, d_kv=14, d_ff=88, num_layers=2,
            num_heads=4,
            use_cache=False, decoder_start_token_id=0,
        ),
        _two_texts, 11, 17,
    ),
    "transformers/opt": _text(
        "OPT", "OPTForCausalLM", **_TEXT, hidden_size=64, word_embed_proj_dim=48, ffn_dim=88, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, use_cache=False,
    ),
    "transformers/phi3": _text("Phi3", "Phi3ForCausalLM", **_DECODER),
    "transformers/qwen2-moe": _text(
        "Qwen2Moe", "Qwen2MoeForCausalLM", **_EXPERTS, num_experts=4, moe_intermediate_size=40,
        shared_expert_intermediate_size=56,
    ),
    "transformers/qwen3": _text("Qwen3", "Qwen3ForCausalLM", **_DECODER, head_dim=10),
    "transformers/roberta-mlm": _text("Roberta", "RobertaForMaskedLM", **_ENCODER),
    "transformers/xlm-roberta-qa": _text("XLMRoberta", "XLMRobertaForQuestionAnswering", **_ENCODER),
}  # fmt: skip
