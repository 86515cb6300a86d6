"""Models of open_clip: pictures and words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .case import PackageCase

_TEXT: dict[str, Any] = {"context_length": 12, "vocab_size": 99, "width": 64, "heads": 4, "layers": 2}
_VISION: dict[str, Any] = {"layers": 2, "width": 64, "head_width": 16, "patch_size": 16, "image_size": 64}


def _vit() -> nn.Module:
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    return CLIP(40, CLIPVisionCfg(**_VISION), CLIPTextCfg(**_TEXT))


def _rn50() -> nn.Module:
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    return CLIP(40, CLIPVisionCfg(layers=(1, 1, 1, 1), width=16, image_size=64), CLIPTextCfg(**_TEXT))


def _coca() -> nn.Module:
    from open_clip.coca_model import CoCa, MultimodalCfg
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    return CoCa(
        64,
        MultimodalCfg(**{**_TEXT, "context_length": 11}, dim_head=16),
        CLIPTextCfg(**{**_TEXT, "context_length": 11}, embed_cls=True, output_tokens=True),
        CLIPVisionCfg(
            **_VISION, attentional_pool=True, attn_pooler_queries=10, attn_pooler_heads=4, output_tokens=True
        ),
    )


def _both(length: int) -> Callable[[int, int], tuple[torch.Tensor, torch.Tensor]]:
    def inputs(batch: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        words = torch.randint(5, 90, (batch, length))
        words[:, -1] = 98  # the end of the text has the highest number
        return torch.randn(batch, 3, size, size), words

    return inputs


CASES: dict[str, PackageCase] = {
    "open_clip/coca": PackageCase(_coca, _both(11), 64),
    "open_clip/rn50": PackageCase(_rn50, _both(12), 64),
    "open_clip/vit": PackageCase(_vit, _both(12), 64),
}
