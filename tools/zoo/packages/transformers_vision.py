"""Models of transformers that see: encoders, detectors, masks, depth."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .case import PackageCase, pixels
from .transformers_text import model

_VIT: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 88,
    "image_size": 64,
    "patch_size": 16,
}
_STAGES = ["stage1", "stage2", "stage3", "stage4"]


def _seen(config: str, cls: str, size: int = 64, other: int | None = None, **settings: Any) -> PackageCase:
    return PackageCase(model(config, cls, **settings), pixels, size, other)


def _resnet(**settings: Any) -> Any:
    import transformers

    return transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], layer_type="basic", **settings
    )


def _swin(out: list[str]) -> Any:
    import transformers

    return transformers.SwinConfig(
        embed_dim=24, depths=[1, 1, 1, 1], num_heads=[2, 2, 4, 4], window_size=4, image_size=64, out_features=out
    )


def _detr() -> nn.Module:
    import transformers

    return transformers.DetrForObjectDetection(
        transformers.DetrConfig(
            backbone_config=_resnet(out_features=["stage4"]), d_model=48, encoder_layers=2, decoder_layers=2,
            encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=72, decoder_ffn_dim=88,
            num_queries=10,
            use_timm_backbone=False, use_pretrained_backbone=False,
        )
    )  # fmt: skip


def _deformable_detr() -> nn.Module:
    import transformers

    return transformers.DeformableDetrForObjectDetection(
        transformers.DeformableDetrConfig(
            backbone_config=_resnet(out_features=_STAGES[1:]), d_model=64, encoder_layers=1, decoder_layers=2,
            encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=72, decoder_ffn_dim=88,
            num_queries=10,
            use_timm_backbone=False, use_pretrained_backbone=False,
        )
    )  # fmt: skip


def _rt_detr() -> nn.Module:
    import transformers

    backbone = transformers.RTDetrResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=32, encoder_in_channels=[32, 48, 64], encoder_layers=1,
        encoder_ffn_dim=48, encoder_attention_heads=4, d_model=32, num_queries=20, decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=48, decoder_layers=2, decoder_attention_heads=4, num_denoising=0,
    )  # fmt: skip
    return transformers.RTDetrForObjectDetection(config)


def _mask2former() -> nn.Module:
    import transformers

    config = transformers.Mask2FormerConfig(
        backbone_config=_swin(_STAGES), feature_size=32, mask_feature_size=32, hidden_dim=32,
        encoder_feedforward_dim=48,
        encoder_layers=1, decoder_layers=2, num_attention_heads=4, dim_feedforward=48, num_queries=10,
    )  # fmt: skip
    return transformers.Mask2FormerForUniversalSegmentation(config)


def _maskformer() -> nn.Module:
    import transformers

    decoder = transformers.DetrConfig(
        backbone_config=_resnet(out_features=["stage4"]), d_model=32, encoder_layers=1, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, num_queries=10,
        use_timm_backbone=False, use_pretrained_backbone=False,
    )  # fmt: skip
    return transformers.MaskFormerForInstanceSegmentation(
        transformers.MaskFormerConfig(
            fpn_feature_size=32, mask_feature_size=32, backbone_config=_swin(_STAGES), decoder_config=decoder
        )
    )


def _depth_anything() -> nn.Module:
    import transformers

    backbone = transformers.Dinov2Config(
        **{**_VIT, "patch_size": 8, "num_hidden_layers": 4},
        mlp_ratio=2,
        out_features=_STAGES,
        reshape_hidden_states=False,
    )
    return transformers.DepthAnythingForDepthEstimation(
        transformers.DepthAnythingConfig(
            backbone_config=backbone, patch_size=8, reassemble_hidden_size=64, neck_hidden_sizes=[16, 24, 32, 40],
            fusion_hidden_size=24, head_hidden_size=16,
        )
    )  # fmt: skip


def _dpt() -> nn.Module:
    """Its last bias such that its last ReLU lets something through."""
    made = model(
        "DPT", "DPTForDepthEstimation", **{**_VIT, "num_hidden_layers": 4}, is_hybrid=False,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[16, 24, 32, 40], fusion_hidden_size=24,
    )()  # fmt: skip
    nn.init.ones_(made.head.head[-2].bias)
    return made


def _sam() -> nn.Module:
    import transformers

    return transformers.SamModel(
        transformers.SamConfig(
            vision_config=transformers.SamVisionConfig(
                **_VIT, mlp_dim=88, output_channels=32, num_pos_feats=16, window_size=3, global_attn_indexes=[1]
            ),
            prompt_encoder_config=transformers.SamPromptEncoderConfig(
                hidden_size=32, image_size=64, patch_size=16, mask_input_channels=8
            ),
            mask_decoder_config=transformers.SamMaskDecoderConfig(
                hidden_size=32, mlp_dim=48, num_attention_heads=4, iou_head_hidden_dim=24
            ),
        )
    )


def _frames(batch: int, size: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(batch, 4, 3, size, size)}


def _points(batch: int, size: int) -> dict[str, torch.Tensor]:
    return {**pixels(batch, size), "input_points": torch.rand(batch, 1, 2, 2) * size}


CASES: dict[str, PackageCase] = {
    "transformers/beit": _seen("Beit", "BeitForImageClassification", **_VIT, use_relative_position_bias=True),
    "transformers/clip-vision": _seen("CLIPVision", "CLIPVisionModel", **_VIT),
    "transformers/deformable-detr": PackageCase(_deformable_detr, pixels, 64, 96),
    "transformers/deit": _seen("DeiT", "DeiTForImageClassification", **_VIT),
    "transformers/depth-anything": PackageCase(_depth_anything, pixels, 64, 96),
    "transformers/detr": PackageCase(_detr, pixels, 64, 96),
    "transformers/dinov2": _seen("Dinov2", "Dinov2ForImageClassification", 64, 96, **_VIT),
    "transformers/dpt": PackageCase(_dpt, pixels, 64),
    "transformers/levit": _seen(
        "Levit", "LevitForImageClassification", hidden_sizes=[32, 48, 64], num_attention_heads=[2, 3, 4],
        depths=[1, 1, 1], key_dim=[8, 8, 8], image_size=64, drop_path_rate=0,
    ),
    "transformers/mask2former": PackageCase(_mask2former, pixels, 64, 96),
    "transformers/maskformer": PackageCase(_maskformer, pixels, 64, 96),
    "transformers/mobilevit": _seen(
        "MobileViT", "MobileViTForImageClassification", 64, 96, hidden_sizes=[24, 32, 48],
        neck_hidden_sizes=[8, 16, 24, 32, 40, 48, 64], image_size=64,
    ),
    "transformers/rt-detr": PackageCase(_rt_detr, pixels, 64, 96, selects=True),
    "transformers/sam": PackageCase(_sam, _points, 64),
    "transformers/segformer": _seen(
        "Segformer", "SegformerForSemanticSegmentation", 64, 96, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 3, 4], decoder_hidden_size=32,
    ),
    "transformers/swinv2": _seen(
        "Swinv2", "Swinv2ForImageClassification", 64, 96, image_size=64, patch_size=4, embed_dim=32, depths=[2, 2],
        num_heads=[2, 4], window_size=4,
    ),
    "transformers/timesformer": PackageCase(
        model("Timesformer", "TimesformerForVideoClassification", **_VIT, num_frames=4), _frames, 64
    ),
    "transformers/videomae": PackageCase(
        model("VideoMAE", "VideoMAEForVideoClassification", **_VIT, num_frames=4), _frames, 64
    ),
    "transformers/vit-mae": _seen(
        "ViTMAE", "ViTMAEForPreTraining", **_VIT, decoder_hidden_size=48, decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4, decoder_intermediate_size=72,
    ),
    "transformers/yolos": _seen(
        "Yolos", "YolosForObjectDetection", 64, 96, **{**_VIT, "image_size": [64, 64]}, num_detection_tokens=6
    ),
}  # fmt: skip
