"""timm's transforms from a PIL image to a model's input."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image

from prunegate.data.randomness import CHECK
from prunegate.errors import DataError, nearest
from prunegate.seeding import seeded

Transform = Callable[[Image.Image], torch.Tensor]

# Arguments that other keys set, or that would not give a single normalised float tensor.
_NOT_YOURS = {
    "input_size", "is_training", "separate", "use_prefetcher", "tf_preprocessing", "normalize", "naflex", "patch_size",
    "max_seq_len", "patchify", "patchify_channels_last", "patchify_flatten", "re_num_splits",
}  # fmt: skip
_OF_EACH_CHANNEL = ("mean", "std")


def normalisation(given: Mapping[str, Any], channels: int) -> tuple[Any, Any]:
    """Mean and deviation of each channel, as fractions of the largest pixel: the given ones, or those of ImageNet."""
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    results = []
    for name, usual in zip(_OF_EACH_CHANNEL, (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD), strict=True):
        # timm's own have three channels and would expand one channel to three.
        values = given.get(name, usual if channels == 3 else (sum(usual) / 3,))
        results.append(tuple(values) if isinstance(values, list) else values)
    return results[0], results[1]


def make_transforms(given: Mapping[str, Any], channels: int, size: int) -> tuple[Transform, Transform]:
    """The transforms of training and of test images.

    Args:
        given: Arguments of timm's `create_transform`.
        size: Side of the result in pixels.

    Raises:
        DataError: An argument is unknown to timm or rejected.
    """
    from timm.data import create_transform

    known = [name for name in inspect.signature(create_transform).parameters if name not in _NOT_YOURS]
    for name in given:
        if name not in known:
            near = nearest(name, known)
            raise DataError(
                f"data.transform.{name}: timm's create_transform has no such parameter, or it is set here. "
                + (f"Nearest: {', '.join(near)}." if near else f"Known: {', '.join(known)}.")
            )
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    for name, values in zip(_OF_EACH_CHANNEL, normalisation(given, channels), strict=True):
        arguments[name] = values
        if not isinstance(values, tuple) or len(values) != channels:
            raise DataError(
                f"data.transform.{name}: found {given.get(name)}, expected a list of {channels} numbers, one for each "
                "channel. See data.channels."
            )
    made = []
    for training in (True, False):
        if not training and arguments.get("interpolation") == "random":
            arguments["interpolation"] = "bilinear"  # timm supports "random" in training only
        try:
            transform: Transform = create_transform((channels, size, size), is_training=training, **arguments)
            # Run once, as timm checks some arguments only then.
            with seeded(CHECK):
                result = transform(Image.new("RGB" if channels == 3 else "L", (size, size)))
        except Exception as error:  # timm uses assertions, looks up names and relies on torchvision's checks
            raise DataError(
                f"data.transform: timm refuses {dict(given)}: {type(error).__name__}: {error}. "
                "See timm.data.create_transform."
            ) from error
        if tuple(result.shape) != (channels, size, size):
            raise DataError(
                f"data.transform: makes images of shape {tuple(result.shape)}, expected {(channels, size, size)}. "
                "Remove the arguments that change the size."
            )
        made.append(transform)
    train, test = made
    return train, test
