"""The folder of one run: made for it alone, filled piece by piece, every file whole or not there."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunegate.errors import RunFolderError
from prunegate.files import replacing

CHECKPOINT = "compact.safetensors"
DENSE = "dense.safetensors"
METRICS = "metrics.jsonl"
RECIPE = "recipe.yaml"
SUMMARY = "summary.json"
REPORT = "report.png"


def checkpoint_of(fraction: float) -> str:
    """The name of a compact model that is not the smallest of its run."""
    return f"compact-{fraction:g}.safetensors"


class RunFolder:
    """Files of a run, by the names above."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def refuse_used(cls, path: Path) -> RunFolder:
        """The folder for a new run; nothing is written yet.

        Raises:
            RunFolderError: It holds another run or other files, or is no folder.
        """
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"{path}: is a file, expected a folder to write to. Choose another with --out.")
        if path.is_dir() and any(path.iterdir()):
            what = "another run" if (path / RECIPE).exists() else "other files"
            raise RunFolderError(
                f"{path}: holds {what}, expected a new or empty folder. Nothing is overwritten. "
                "Choose another with --out, or remove it."
            )
        return cls(path)

    def create(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

    def file(self, name: str) -> Path:
        return self.path / name

    def write(self, name: str, text: str) -> None:
        """Write a text file whole or not at all."""
        with replacing(self.file(name)) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        with self.file(METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def environment(seed: int) -> dict[str, Any]:
    """Versions and machine, for the record."""
    import timm
    import torch
    import torchvision

    from prunegate.version import __version__

    return {
        "prunegate": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "seed": seed,
    }
