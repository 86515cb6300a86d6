"""Models of kornia: edges, features, matches."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .case import PackageCase, image


def _dexined() -> nn.Module:
    from kornia.filters.dexined import DexiNed

    return DexiNed(pretrained=False)


def _disk() -> nn.Module:
    from kornia.feature import DISK

    return DISK(desc_dim=32)


def _hardnet() -> nn.Module:
    from kornia.feature import HardNet

    return HardNet(pretrained=False)


def _loftr() -> nn.Module:
    from kornia.feature import LoFTR
    from kornia.feature.loftr.loftr import default_cfg

    def small(part: str, width: int, layers: list[str]) -> dict[str, Any]:
        return {**default_cfg[part], "d_model": width, "d_ffn": width, "nhead": 4, "layer_names": layers}

    config = {
        **default_cfg,
        "resnetfpn": {"initial_dim": 32, "block_dims": [32, 40, 48]},
        "coarse": small("coarse", 48, ["self", "cross"]),
        "fine": small("fine", 32, ["self", "cross"]),
        "match_coarse": {**default_cfg["match_coarse"], "thr": 0.0},
    }
    return LoFTR(pretrained=None, config=config)


def _tinyvit() -> nn.Module:
    from kornia.models.tiny_vit import TinyViT

    return TinyViT(
        img_size=128, num_classes=10, embed_dims=(32, 48, 64, 96), depths=(1, 1, 2, 1), num_heads=(2, 3, 4, 6),
        window_sizes=(4, 4, 8, 4),
    )  # fmt: skip


def _pair(batch: int, size: int) -> tuple[dict[str, torch.Tensor]]:
    return ({"image0": torch.rand(batch, 1, size, size), "image1": torch.rand(batch, 1, size, size)},)


CASES: dict[str, PackageCase] = {
    "kornia/dexined": PackageCase(_dexined, image(), 64, 96),
    "kornia/disk": PackageCase(_disk, image(), 64, 96),
    "kornia/hardnet": PackageCase(_hardnet, image(1), 32),
    "kornia/loftr": PackageCase(_loftr, _pair, 64, 96, selects=True),
    "kornia/tinyvit": PackageCase(_tinyvit, image(), 128),
}
