"""A network in the manner of MobileNetV2 for small images."""

from __future__ import annotations

from timm.models import EfficientNet
from timm.models._efficientnet_builder import decode_arch_def
from torch import nn

# Of each stage the kind of its blocks, repeats, kernel, stride, expansion and channels, as timm writes them.
_STAGES = ("ds_r1_k3_s1_c16", "ir_r2_k3_s1_e4_c16", "ir_r2_k3_s2_e4_c24", "ir_r2_k3_s2_e4_c48")


def mobilenet() -> nn.Module:
    """Six inverted residual blocks behind a separable one; the stem and two stages halve the image.

    Reference:
        Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018, arXiv:1801.04381.
    """
    return EfficientNet(
        decode_arch_def([[stage] for stage in _STAGES]),
        num_classes=10,
        num_features=192,
        in_chans=1,
        stem_size=16,
        fix_stem=True,
        act_layer=nn.ReLU6,
    )
