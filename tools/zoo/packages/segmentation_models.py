"""Models of segmentation_models_pytorch on a ResNet-18."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .case import PackageCase, image


def _model(cls: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import segmentation_models_pytorch

        made: nn.Module = getattr(segmentation_models_pytorch, cls)(
            "resnet18", encoder_weights=None, classes=3, **settings
        )
        return made

    return build


_NARROW: dict[str, Any] = {"decoder_channels": (64, 48, 32, 24, 16)}
_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": ("Unet", _NARROW),
    "unet++": ("UnetPlusPlus", _NARROW),
    "linknet": ("Linknet", {}),
    "fpn": ("FPN", {"decoder_pyramid_channels": 64, "decoder_segmentation_channels": 32}),
    "pan": ("PAN", {"decoder_channels": 16}),
    "deeplabv3+": ("DeepLabV3Plus", {"decoder_channels": 64}),
    "upernet": ("UPerNet", {"decoder_channels": 48}),
    "manet": ("MAnet", _NARROW),
    "segformer": ("Segformer", {"decoder_segmentation_channels": 48}),
    "unet-scse": ("Unet", {**_NARROW, "decoder_attention_type": "scse"}),
}
CASES: dict[str, PackageCase] = {
    f"smp/{name}": PackageCase(_model(cls, **settings), image(), *((128, 160) if name == "pan" else (64, 96)))
    for name, (cls, settings) in _MODELS.items()
}
