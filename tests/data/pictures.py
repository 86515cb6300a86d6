"""Tiny image folders and the data that is read from them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from prunegate.data import Batch, Data, DataSettings, load_data

CLASSES = ("ant", "bee", "cat")
COUNT = 7  # training images of each class


def image_folder(folder: Path, test: str = "val", side: int = 12) -> Path:
    """Images of random pixels: seven of each class for training, four for testing."""
    rng = np.random.default_rng(0)
    for part, count in (("train", COUNT), (test, 4)):
        for name in CLASSES:
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")
    return folder


def folder_settings(folder: Path, **given: Any) -> DataSettings:
    return DataSettings(
        **{"name": "folder", "folder": str(folder), "image_size": 8, "batch_size": 4, "train_limit": None, **given}
    )


def folder_data(folder: Path, **given: Any) -> Data:
    return load_data(folder_settings(folder, **given))


def same(one: Iterable[Batch], other: Iterable[Batch]) -> bool:
    """Whether two runs of batches are the same bits; and there are some."""
    first, second = list(one), list(other)
    assert first
    return len(first) == len(second) and all(
        all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
        for left, right in zip(first, second, strict=True)
    )


def joined(parts: Iterable[Batch]) -> Batch:
    """The parts that several processes took of one batch, as one."""
    return Batch(*(torch.cat(each) for each in zip(*parts, strict=True)))
