"""The section ``data`` of a recipe."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from prunegate.own_code import is_own
from prunegate.settings import Settings

MEMORY_KINDS = ("digits", "fashion_mnist", "cifar10")
_PREFIXED = re.compile(r"(torchvision|timm)/.+")


def _known(name: str) -> str:
    if name in (*MEMORY_KINDS, "folder") or _PREFIXED.fullmatch(name) or is_own(name):
        return name
    raise ValueError(
        f"found {name!r}, expected {', '.join(MEMORY_KINDS)}, folder, torchvision/<Class>, timm/<name> or "
        "module:function of your own code"
    )


class MixupSettings(Settings):
    """Mixup and cutmix of training batches, with timm; off by default."""

    mixup_alpha: Annotated[float, Field(ge=0.0, le=100.0)] = Field(
        0.0, description="images are blended with weights from Beta(alpha, alpha); 0 turns it off"
    )
    cutmix_alpha: Annotated[float, Field(ge=0.0, le=100.0)] = Field(
        0.0, description="rectangles are pasted, with areas from Beta(alpha, alpha); 0 turns it off"
    )
    cutmix_minmax: (
        Annotated[list[Annotated[float, Field(gt=0.0, lt=1.0)]], Field(min_length=2, max_length=2)] | None
    ) = Field(None, description="least and largest side of the rectangles as fractions, instead of cutmix_alpha")
    prob: Annotated[float, Field(ge=0.0, le=1.0)] = Field(1.0, description="share of batches, or samples, to mix")
    switch_prob: Annotated[float, Field(ge=0.0, le=1.0)] = Field(0.5, description="share of cutmix if both are on")
    mode: Literal["batch", "pair", "elem"] = Field(
        "batch", description="whether parameters are drawn per batch, pair or sample"
    )
    correct_lam: bool = Field(True, description="correct labels for the area that was actually pasted")
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="share of the labels spread over all classes, in mixed batches"
    )

    @property
    def enabled(self) -> bool:
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0 or self.cutmix_minmax is not None

    @model_validator(mode="after")
    def _sensible(self) -> MixupSettings:
        if self.label_smoothing and not self.enabled:
            raise ValueError(
                f"found label_smoothing {self.label_smoothing} and nothing to mix, expected mixup_alpha or "
                "cutmix_alpha above 0. For smoothing alone set optimizer.label_smoothing"
            )
        if self.cutmix_minmax is not None and self.cutmix_minmax[0] >= self.cutmix_minmax[1]:
            raise ValueError(f"found cutmix_minmax {self.cutmix_minmax}, expected the least side before the largest")
        return self


class DataSettings(Settings):
    """Images and labels."""

    name: Annotated[str, AfterValidator(_known)] = Field(
        description="digits, fashion_mnist, cifar10, folder, torchvision/<Class>, timm/<name>, or module:function "
        "of your own code, which returns the training and the test set"
    )
    folder: str | None = Field(None, description="folder of the files, if not the usual one")
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the data set's constructor"
    )
    train_split: str | None = Field(None, description="name of the training part, if not the usual one")
    test_split: str | None = Field(None, description="name of the test part, if not the usual one")
    labels: Literal["classes", "any"] = Field(
        "classes",
        description="class indices; or any: numbers, tensors, lists and dicts of them, of a data set of your own, "
        "which training.loss and training.metric get unchanged",
    )
    num_classes: Annotated[int, Field(ge=2)] | None = Field(
        None, description="number of classes, if the data set does not define it"
    )
    channels: Literal[1, 3] | None = Field(
        None, description="channels of images read from files; by default 3 (colour)"
    )
    image_size: Annotated[int, Field(ge=8, le=1024)] = Field(32, description="side in pixels after resizing")
    batch_size: Annotated[int, Field(ge=2, le=65536)] = Field(64, description="samples in one step, all processes")
    train_limit: Annotated[int, Field(ge=2)] | None = Field(None, description="use only this many training images")
    augment: Literal["none", "shift", "shift_flip"] = Field(
        "none", description="augmentation of training images in memory: digits, fashion_mnist, cifar10"
    )
    transform: dict[str, Any] = Field(
        default_factory=dict,
        description="arguments of timm's create_transform for all other images, such as auto_augment, hflip, re_prob",
    )
    mixup: MixupSettings = Field(MixupSettings(), description="mixing of training batches")
    workers: Annotated[int, Field(ge=0, le=1024)] = Field(
        0, description="worker processes that read files, per training process"
    )
    unreadable_limit: Annotated[int, Field(ge=0)] = Field(
        10, description="most unreadable files that are skipped; with more the run stops"
    )
