"""Models of diffusers: U-Nets, transformers, autoencoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .case import PackageCase, image

_UNET: dict[str, Any] = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
_CROSS: dict[str, Any] = {
    **_UNET,
    "cross_attention_dim": 24,
    "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
}
_CODER: dict[str, Any] = {
    **_UNET,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}


def _model(cls: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import diffusers

        made: nn.Module = getattr(diffusers, cls)(**settings)
        return made

    return build


def _noised(batch: int, size: int) -> dict[str, torch.Tensor]:
    return {"sample": torch.randn(batch, 3, size, size), "timestep": torch.full((batch,), 5)}


def _conditioned(batch: int, size: int) -> dict[str, torch.Tensor]:
    return {
        "sample": torch.randn(batch, 4, size, size),
        "timestep": torch.full((batch,), 5),
        "encoder_hidden_states": torch.randn(batch, 7, 24),
    }


def _controlled(batch: int, size: int) -> dict[str, torch.Tensor]:
    return {**_conditioned(batch, size), "controlnet_cond": torch.randn(batch, 3, 8 * size, 8 * size)}


def _classes(batch: int, size: int) -> dict[str, torch.Tensor]:
    return {
        "hidden_states": torch.randn(batch, 4, size, size),
        "timestep": torch.full((batch,), 5),
        "class_labels": torch.arange(batch) % 10,
    }


def _flux(batch: int, size: int) -> dict[str, torch.Tensor]:
    """Patches of a picture and words, each with its place."""
    places = torch.zeros(size, size, 3)
    places[..., 1] = torch.arange(size)[:, None]
    places[..., 2] = torch.arange(size)[None]
    return {
        "hidden_states": torch.randn(batch, size * size, 16),
        "encoder_hidden_states": torch.randn(batch, 7, 24),
        "pooled_projections": torch.randn(batch, 20),
        "timestep": torch.full((batch,), 0.5),
        "img_ids": places.view(-1, 3),
        "txt_ids": torch.zeros(7, 3),
    }


def _sd3(batch: int, size: int) -> dict[str, torch.Tensor]:
    return {
        "hidden_states": torch.randn(batch, 4, size, size),
        "encoder_hidden_states": torch.randn(batch, 7, 24),
        "pooled_projections": torch.randn(batch, 20),
        "timestep": torch.full((batch,), 5),
    }


CASES: dict[str, PackageCase] = {
    "diffusers/autoencoder-kl": PackageCase(_model("AutoencoderKL", **_CODER), image(), 32, 48),
    "diffusers/controlnet": PackageCase(
        _model("ControlNetModel", **_CROSS, conditioning_embedding_out_channels=(8, 16, 24, 32)), _controlled, 8, 12
    ),
    "diffusers/dit": PackageCase(
        _model("DiTTransformer2DModel", num_attention_heads=4, attention_head_dim=16, num_layers=2, sample_size=8,
               num_embeds_ada_norm=10),
        _classes, 8,
    ),
    "diffusers/flux": PackageCase(
        _model("FluxTransformer2DModel", in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
               num_attention_heads=4, joint_attention_dim=24, pooled_projection_dim=20, axes_dims_rope=(4, 6, 6)),
        _flux, 4, 6,
    ),
    "diffusers/sd3": PackageCase(
        _model("SD3Transformer2DModel", sample_size=8, in_channels=4, out_channels=4, num_layers=2,
               attention_head_dim=16,
               num_attention_heads=4, joint_attention_dim=24, caption_projection_dim=64, pooled_projection_dim=20,
               pos_embed_max_size=16),
        _sd3, 8, 12,
    ),
    "diffusers/unet2d": PackageCase(
        _model("UNet2DModel", **_UNET, attention_head_dim=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
               up_block_types=("AttnUpBlock2D", "UpBlock2D")),
        _noised, 16, 24,
    ),
    "diffusers/unet2d-condition": PackageCase(
        _model("UNet2DConditionModel", **_CROSS, sample_size=16, up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")),
        _conditioned, 16, 24,
    ),
    "diffusers/vq": PackageCase(_model("VQModel", **_CODER, num_vq_embeddings=24), image(), 32, 48),
}  # fmt: skip
