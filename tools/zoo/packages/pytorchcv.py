"""Models of pytorchcv with uncommon layers, the smallest of each kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .case import PackageCase, image


def _model(name: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from pytorchcv.model_provider import get_model

        model: nn.Module = get_model(name, pretrained=False, **settings)
        pool = getattr(model, "features", nn.Identity())._modules.get("final_pool")
        if isinstance(pool, nn.AvgPool2d):  # made for 224 x 224
            model.features.final_pool = nn.AdaptiveAvgPool2d(1)
        return model

    return build


_CLASSES = {"num_classes": 10}
CASES: dict[str, PackageCase] = {
    "pytorchcv/condensenet74": PackageCase(_model("condensenet74_c8_g8", **_CLASSES), image(), 64, 96),
    "pytorchcv/hrnet": PackageCase(_model("hrnet_w18_small_v1", **_CLASSES), image(), 64, 96),
    "pytorchcv/igcv3": PackageCase(_model("igcv3_wd4", **_CLASSES), image(), 64, 96),
    "pytorchcv/lwopenpose": PackageCase(_model("lwopenpose2d_mobilenet_cmupan_coco"), image(), 64, 96),
    "pytorchcv/menet": PackageCase(_model("menet108_8x1_g3", **_CLASSES), image(), 64, 96),
    "pytorchcv/octresnet10": PackageCase(_model("octresnet10_ad2", **_CLASSES), image(), 64, 96),
    "pytorchcv/resneta10": PackageCase(_model("resneta10", **_CLASSES), image(), 64, 96),
    "pytorchcv/simplepose": PackageCase(_model("simplepose_resnet18_coco"), image(), 64, 96),
}
