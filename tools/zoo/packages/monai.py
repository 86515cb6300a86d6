"""Models of MONAI, for medical images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .case import PackageCase, image, volume


def _model(cls: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from monai.networks import nets

        made: nn.Module = getattr(nets, cls)(**settings)
        return made

    return build


_SOLID: dict[str, Any] = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
_FLAT: dict[str, Any] = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
_DEPTHS: dict[str, Any] = {"channels": (16, 24, 32), "strides": (2, 2)}
CASES: dict[str, PackageCase] = {
    "monai/attention-unet": PackageCase(_model("AttentionUnet", **_FLAT, **_DEPTHS), image(1), 32, 48),
    "monai/densenet3d": PackageCase(
        _model("DenseNet", **_SOLID, init_features=24, growth_rate=12, block_config=(2, 3, 2)), volume(), 32, 40
    ),
    "monai/dynunet": PackageCase(
        _model("DynUNet", **_SOLID, kernel_size=[3, 3, 3], strides=[1, 2, 2], upsample_kernel_size=[2, 2],
               filters=[12, 16, 24], res_block=True),
        volume(), 8, 12,
    ),
    "monai/segresnet": PackageCase(
        _model("SegResNet", **_SOLID, init_filters=16, blocks_down=(1, 1, 2), blocks_up=(1, 1)), volume(), 16, 24
    ),
    "monai/swinunetr": PackageCase(
        _model("SwinUNETR", **_FLAT, feature_size=24, depths=(1, 2, 1, 1), window_size=4), image(1), 64, 96
    ),
    "monai/unet3d": PackageCase(_model("UNet", **_SOLID, **_DEPTHS, num_res_units=2), volume(), 16, 24),
    "monai/unetr": PackageCase(
        _model("UNETR", **_SOLID, img_size=32, feature_size=16, hidden_size=48, mlp_dim=88, num_heads=4), volume(), 32
    ),
    "monai/vnet": PackageCase(_model("VNet", **_FLAT, dropout_dim=2), image(1), 32, 48),
}  # fmt: skip
