"""Models of spandrel, which makes pictures larger or clearer."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import nn

from .case import PackageCase, image


def _model(architecture: str, cls: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        made: nn.Module = getattr(import_module(f"spandrel.architectures.{architecture}"), cls)(**settings)
        return made

    return build


_SWIN: dict[str, Any] = {
    "img_size": 16,
    "window_size": 8,
    "depths": [2, 2],
    "embed_dim": 36,
    "num_heads": [6, 6],
    "mlp_ratio": 2,
}
CASES: dict[str, PackageCase] = {
    "spandrel/dat": PackageCase(
        _model("DAT", "DAT", img_size=16, embed_dim=36, split_size=[4, 8], depth=[2, 2], num_heads=[4, 4],
               expansion_factor=2.0, upscale=2),
        image(), 16, 24,
    ),
    "spandrel/dncnn": PackageCase(_model("DnCNN", "DnCNN", nc=48, nb=5), image(1), 32, 40),
    "spandrel/hat": PackageCase(
        _model("HAT", "HAT", **_SWIN, squeeze_factor=6, upscale=2, num_feat=40), image(), 16, 24
    ),
    "spandrel/nafnet": PackageCase(
        _model("NAFNet", "NAFNet", width=24, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1]), image(), 32, 48
    ),
    "spandrel/rcan": PackageCase(
        _model("RCAN", "RCAN", scale=2, n_resgroups=2, n_resblocks=2, n_feats=48, reduction=8), image(), 16, 24
    ),
    "spandrel/rrdbnet": PackageCase(
        _model("ESRGAN.__arch.RRDB", "RRDBNet", in_nc=3, out_nc=3, num_filters=32, num_blocks=2, scale=2), image(),
        16, 24
    ),
    "spandrel/scunet": PackageCase(
        _model("SCUNet", "SCUNet", config=[2, 1, 1, 2, 1, 1, 2], dim=64, input_resolution=64), image(), 64, 128
    ),
    "spandrel/span": PackageCase(
        _model("SPAN", "SPAN", num_in_ch=3, num_out_ch=3, feature_channels=32, upscale=2), image(), 16, 24
    ),
    "spandrel/srvgg": PackageCase(
        _model("Compact.__arch.SRVGG", "SRVGGNetCompact", num_in_ch=3, num_out_ch=3, num_feat=40, num_conv=4,
        upscale=2),
        image(), 16, 24,
    ),
    "spandrel/swin2sr": PackageCase(
        _model("Swin2SR", "Swin2SR", **_SWIN, upscale=2, upsampler="pixelshuffle"), image(), 16, 24
    ),
    "spandrel/swinir": PackageCase(
        _model("SwinIR", "SwinIR", **_SWIN, upscale=2, upsampler="pixelshuffledirect"), image(), 16, 24
    ),
}  # fmt: skip
