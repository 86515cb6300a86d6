"""Models of vit-pytorch."""

from __future__ import annotations

from torch import nn

from .case import PackageCase, image


def _vit() -> nn.Module:
    from vit_pytorch.vit import ViT

    return ViT(image_size=64, patch_size=16, num_classes=10, dim=64, depth=2, heads=4, mlp_dim=88, dim_head=12)


def _cvt() -> nn.Module:
    from vit_pytorch.cvt import CvT

    return CvT(
        num_classes=10, s1_emb_dim=16, s1_heads=1, s2_emb_dim=32, s2_heads=2, s2_depth=1, s3_emb_dim=48, s3_heads=3,
        s3_depth=1, s1_mlp_mult=2, s2_mlp_mult=2, s3_mlp_mult=2,
    )  # fmt: skip


def _mobilevit() -> nn.Module:
    from vit_pytorch.mobile_vit import MobileViT

    return MobileViT((64, 64), [32, 40, 48], [16, 16, 24, 24, 32, 32, 40, 40, 48, 48, 64], 10, depths=(1, 2, 1))


CASES: dict[str, PackageCase] = {
    "vit-pytorch/cvt": PackageCase(_cvt, image(), 64, 96),
    "vit-pytorch/mobilevit": PackageCase(_mobilevit, image(), 64, 128),
    "vit-pytorch/vit": PackageCase(_vit, image(), 64),
}
