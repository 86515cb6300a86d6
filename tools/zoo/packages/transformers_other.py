"""Models of transformers that hear, join pictures and words, or foresee series."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .case import PackageCase, pixels, token_ids
from .transformers_text import model

_LAYERS: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 88,
}
_TEXT: dict[str, Any] = {
    **_LAYERS,
    "vocab_size": 99,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION: dict[str, Any] = {**_LAYERS, "image_size": 64, "patch_size": 16}
_SPEECH: dict[str, Any] = {
    **_LAYERS,
    "vocab_size": 40,
    "conv_dim": (24, 32, 40),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}
_SERIES: dict[str, Any] = {
    "prediction_length": 6,
    "context_length": 12,
    "lags_sequence": [1, 2, 3],
    "num_time_features": 2,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 88,
    "decoder_ffn_dim": 72,
    "use_cache": False,
}


def _clip() -> nn.Module:
    import transformers

    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**_TEXT, "eos_token_id": 98}, vision_config=dict(_VISION), projection_dim=40
        )
    )


def _siglip() -> nn.Module:
    import transformers

    return transformers.SiglipModel(transformers.SiglipConfig(text_config=dict(_TEXT), vision_config=dict(_VISION)))


def _blip() -> nn.Module:
    import transformers

    return transformers.BlipForConditionalGeneration(
        transformers.BlipConfig(
            text_config={**_TEXT, "encoder_hidden_size": 64, "use_cache": False}, vision_config=dict(_VISION),
            projection_dim=40,
        )
    )  # fmt: skip


def _llava() -> nn.Module:
    import transformers

    text = transformers.LlamaConfig(**{**_TEXT, "num_key_value_heads": 2, "use_cache": False})
    vision = transformers.CLIPVisionConfig(**_VISION)
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_id=98, vision_feature_layer=-1)
    )


def _trocr() -> nn.Module:
    import transformers

    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**_VISION),
        transformers.TrOCRConfig(
            vocab_size=99, d_model=64, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=88,
            max_position_embeddings=64,
        ),
    )  # fmt: skip
    return transformers.VisionEncoderDecoderModel(config)


def _picture_and_words(batch: int, length: int) -> dict[str, torch.Tensor]:
    ids = token_ids(batch, length)
    ids[:, -1] = 98  # the end of the text, which CLIP looks for
    return {"input_ids": ids, **pixels(batch, 64)}


def _picture_among_words(batch: int, length: int) -> dict[str, torch.Tensor]:
    ids = token_ids(batch, length + 16)
    ids[:, 2:18] = 98  # a place for each patch
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels(batch, 64)}


def _picture_to_words(batch: int, length: int) -> dict[str, torch.Tensor]:
    return {"decoder_input_ids": token_ids(batch, length), **pixels(batch, 64)}


def _sound(batch: int, length: int) -> dict[str, torch.Tensor]:
    return {"input_values": torch.randn(batch, length)}


def _mono(batch: int, length: int) -> dict[str, torch.Tensor]:
    return {"input_values": torch.randn(batch, 1, length)}


def _spectrogram(batch: int, length: int) -> torch.Tensor:
    return torch.randn(batch, length, 20)


def _mel(batch: int, length: int) -> dict[str, torch.Tensor]:
    return {"input_values": torch.randn(batch, length, 32)}


def _past(batch: int, length: int) -> dict[str, torch.Tensor]:
    return {"past_values": torch.randn(batch, length, 3)}


def _past_and_future(batch: int, _: int) -> dict[str, torch.Tensor]:
    return {
        "past_values": torch.randn(batch, 15),
        "past_time_features": torch.randn(batch, 15, 2),
        "past_observed_mask": torch.ones(batch, 15),
        "future_values": torch.randn(batch, 6),
        "future_time_features": torch.randn(batch, 6, 2),
    }


CASES: dict[str, PackageCase] = {
    "transformers/ast": PackageCase(
        model("AST", "ASTForAudioClassification", **_LAYERS, patch_size=8, frequency_stride=6, time_stride=6,
              max_length=40, num_mel_bins=32),
        _mel, 40,
    ),
    "transformers/blip": PackageCase(_blip, _picture_and_words, 11, 17),
    "transformers/clip": PackageCase(_clip, _picture_and_words, 11, 17),
    "transformers/encodec": PackageCase(
        model("Encodec", "EncodecModel", num_filters=8, hidden_size=32, codebook_dim=32, codebook_size=32,
              upsampling_ratios=[4, 2], num_lstm_layers=1, target_bandwidths=[24.0], sampling_rate=2400),
        _mono, 200, 320,
    ),
    "transformers/hifigan": PackageCase(
        model("SpeechT5HifiGan", "SpeechT5HifiGan", model_in_dim=20, upsample_initial_channel=64, upsample_rates=[4, 2],
              upsample_kernel_sizes=[8, 4], resblock_kernel_sizes=[3, 5], resblock_dilation_sizes=[[1, 3], [1, 3]]),
        _spectrogram, 12, 18,
    ),
    "transformers/hubert-ctc": PackageCase(model("Hubert", "HubertForCTC", **_SPEECH), _sound, 800, 1200),
    "transformers/informer": PackageCase(
        model("Informer", "InformerForPrediction", **_SERIES), _past_and_future, 15
    ),
    "transformers/llava": PackageCase(_llava, _picture_among_words, 11, 17),
    "transformers/patchtst": PackageCase(
        model("PatchTST", "PatchTSTForPrediction", num_input_channels=3, context_length=48, patch_length=8,
              patch_stride=8,
              prediction_length=10, d_model=64, num_hidden_layers=2, num_attention_heads=4, ffn_dim=88),
        _past, 48,
    ),
    "transformers/siglip": PackageCase(_siglip, _picture_and_words, 11, 17),
    "transformers/trocr": PackageCase(_trocr, _picture_to_words, 11, 17),
    "transformers/ts-transformer": PackageCase(
        model("TimeSeriesTransformer", "TimeSeriesTransformerForPrediction", **_SERIES), _past_and_future, 15
    ),
    "transformers/wav2vec2-conformer": PackageCase(
        model("Wav2Vec2Conformer", "Wav2Vec2ConformerForCTC", **_SPEECH, conv_depthwise_kernel_size=5), _sound, 800,
        1200
    ),
    "transformers/wav2vec2-ctc": PackageCase(model("Wav2Vec2", "Wav2Vec2ForCTC", **_SPEECH), _sound, 800, 1200),
}  # fmt: skip
