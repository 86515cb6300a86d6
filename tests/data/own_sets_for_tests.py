"""Data sets as users write them."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Subset, get_worker_info


class Tensors:
    """Tensors that are different at every reading, by all three generators."""

    classes = ("even", "odd")

    def __init__(self, count: int = 21) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        noise = random.random() + float(np.random.rand()) + float(torch.rand(()))
        return torch.full((2, 3, 5), index + noise / 10), index % 2


class Deadly(Tensors):
    """A worker that reads sample 9 kills itself: the first time, or always."""

    def __init__(self, flag: str, always: bool) -> None:
        super().__init__()
        self.flag, self.always = Path(flag), always

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == 9 and get_worker_info() is not None and (self.always or not self.flag.exists()):
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class Listed:
    """Whatever it is given, as samples."""

    def __init__(self, samples: list[Any], classes: int = 2) -> None:
        self.samples_given = samples
        self.classes = [str(number) for number in range(classes)]

    def __len__(self) -> int:
        return len(self.samples_given)

    def __getitem__(self, index: int) -> Any:
        return self.samples_given[index]


def tensors(count: int = 21) -> tuple[Any, Any]:
    return Tensors(count), Subset(Tensors(), range(5))  # type: ignore[arg-type]


def deadly(flag: str, always: bool = False) -> tuple[Any, Any]:
    return Deadly(flag, always), Tensors(3)


def grey() -> list[Any]:
    images = [(Image.new("L", (9, 7), 20 * number), number % 2) for number in range(6)]
    return [Listed(images), Listed(images)]


def broken(kind: str) -> Any:
    good = (torch.zeros(1, 4, 4), 0)
    if kind == "raises":
        raise KeyError("no such thing")
    if kind == "one":
        return Listed([good])
    if kind == "three":
        return 1, 2, 3
    if kind == "stream":
        return iter([good]), Listed([good])
    if kind == "empty":
        return Listed([]), Listed([good])
    if kind == "classless":
        made = Listed([good, good])
        del made.classes
        return made, made
    sample: Any = {
        "label": (torch.zeros(1, 4, 4), 2),
        "text": (torch.zeros(1, 4, 4), "cat"),
        "bytes": (torch.zeros(1, 4, 4, dtype=torch.uint8), 0),
        "array": (np.zeros((4, 4)), 0),
        "single": (torch.zeros(1, 4, 4),),
    }.get(kind, good)
    test = (torch.zeros(1, 4, 5), 0) if kind == "shapes" else good
    return Listed([sample, good]), Listed([test])


number = 3
