"""A commented recipe to start from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunegate.builders import Builder, input_shape
from prunegate.own_code import is_own
from prunegate.recipe.load import dense_builder
from prunegate.recipe.schema import ModelSettings

# Channels, classes and side in pixels of the built-in data sets.
_KNOWN = {"digits": (1, 10, 32), "fashion_mnist": (1, 10, 64), "cifar10": (3, 10, 32)}
_PARTS = ("train", "training")


def new_recipe(
    model: str,
    data: str = "folder",
    folder: str | None = None,
    weights: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    budget: float = 0.5,
) -> str:
    """The text of a recipe for a model and a data set, with comments on the lines that users are likely to change.

    Args:
        model: As `model.name` in recipes.
        data: As `data.name`.
        folder: As `data.folder`; its classes are counted if it exists.
        weights: As `model.weights`; if given, there is no dense stage.
        arguments: As `model.arguments`.
        budget: Share of the MACs that may remain, in (0, 1].

    Raises:
        ModelNameError: The model does not exist.
    """
    given = dict(arguments or {})
    settings = ModelSettings(name=model, arguments=given)
    builder = dense_builder(settings)
    channels, classes, side = _KNOWN.get(data, (3, _classes(folder), 224))
    if isinstance(builder, Builder):
        if data not in _KNOWN:
            side = input_shape(builder, builder.zeroed())[-1]
        if classes:
            given.setdefault("num_classes", classes)
        if channels != 3 and builder.library != "torchvision":
            given.setdefault("in_chans", channels)
    name = Path(model.replace(":", "_").replace(".", "_")).name
    lines = [
        "# All other keys with their defaults: prunegate recipe keys",
        f"name: {name}",
        "seed: 0",
        "",
        "model:",
        f"  name: {_text(model)}",
        f"  arguments: {_inline(given)}  # of its builder, as in training: num_classes, in_chans, ...",
    ]
    if weights is not None:
        lines += [f"  weights: {_text(weights)}  # --check compares them with the model"]
    elif is_own(model):
        lines += [
            "  # trained: true          # if the function returns a trained model",
            "  # weights: mine.pth",
        ]
    else:
        lines += ["  # weights: mine.pth      # then leave out stages.dense"]
    lines += ["", "data:", f"  name: {_text(data)}"]
    if folder is not None:
        lines += [f"  folder: {_text(folder)}"]
    elif data == "folder":
        lines += ["  folder: images           # with train/ and val/, a subfolder for each class"]
    lines += [
        f"  image_size: {min(1024, max(8, side))}         # pixels",
        "  batch_size: 64",
        *([] if data in _KNOWN else ["  workers: 2               # processes that read files"]),
        *(["  augment: shift           # or shift_flip"] if data in _KNOWN else []),
        "",
        f"budget: {budget}                # of the dense MACs; {{limit: 2_000_000_000}} is absolute",
        "# budget: {metric: latency_ms, fraction: 0.6}    # instead: milliseconds, measured here before training",
        "# latency: {batch_size: 1, threads: 1}           # and of which call",
        "",
        "optimizer: {name: sgd, momentum: 0.9, weight_decay: 0.0005}",
        "",
        "stages:",
    ]
    if weights is None:
        lines += ["  dense: {epochs: 20, learning_rate: 0.1}     # trains the dense model"]
    lines += [
        "  gate: {epochs: 10, learning_rate: 0.02}     # weights and gates together, under the budget",
        "  finetune: {epochs: 20, learning_rate: 0.02} # the compact model",
    ]
    return "\n".join(lines) + "\n"


def _classes(folder: str | None) -> int | None:
    """Classes of a folder of images, or None."""
    for part in _PARTS if folder is not None else ():
        images = Path(str(folder)) / part
        if images.is_dir():
            return sum(entry.is_dir() for entry in images.iterdir()) or None
    return None


def _text(value: str) -> str:
    plain = value.replace("/", "").replace(".", "").replace("_", "").replace("-", "").isalnum()
    return value if plain else json.dumps(value)


def _inline(values: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {json.dumps(value)}" for key, value in values.items()) + "}"
