"""The folder of one run, in which every file is written atomically."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import save_file

from prunegate.errors import RunFolderError
from prunegate.files import replacing

CHECKPOINT = "compact.safetensors"
DENSE = "dense.safetensors"
METRICS = "metrics.jsonl"
TIMINGS = "timings.jsonl"
ENVIRONMENT = "environment.json"
LOCK = ".lock"
RECIPE = "recipe.yaml"
SUMMARY = "summary.json"
REPORT = "report.png"
LATENCY = "latency.json"


def checkpoint_of(fraction: float) -> str:
    """The file name of a compact model that is not the smallest of its run."""
    return f"compact-{fraction:g}.safetensors"


class RunFolder:
    """Files of a run, by the names above.

    Args:
        writes: Whether this process writes; in other processes the writing methods do nothing.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes

    def refuse_used(self) -> None:
        """Check that the folder can hold a new run, without writing anything.

        Raises:
            RunFolderError: It holds another run or other files, or is not a folder.
        """
        self.refuse_file()
        if self.path.is_dir() and any(path.name != LOCK for path in self.path.iterdir()):
            what = "another run" if self.file(RECIPE).exists() else "other files"
            hint = "Resume it with --resume, choose" if self.file(RECIPE).exists() else "Choose"
            raise RunFolderError(
                f"{self.path}: holds {what}, expected a new or empty folder. Nothing is overwritten. "
                f"{hint} another with --out, or remove it."
            )

    def refuse_file(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path}: is a file, expected a folder to write to. Choose another with --out.")

    @property
    def is_started(self) -> bool:
        """Whether it holds a run."""
        return self.file(RECIPE).exists()

    @property
    def is_finished(self) -> bool:
        return self.file(SUMMARY).exists()

    def bytes_written(self) -> int:
        """Size of its files."""
        return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())

    def refuse_full(self, needed: int) -> None:
        """Check that this many bytes fit on the disk.

        Raises:
            RunFolderError: They do not.
        """
        place = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        free = shutil.disk_usage(place).free
        if free < needed:
            raise RunFolderError(
                f"{self.path}: found {free / 1e6:,.0f} MB of free space, expected {needed / 1e6:,.0f} MB for the "
                "checkpoints of this run. Nothing has been trained. Free disk space, choose another folder with --out, "
                "or lower checkpoints.keep."
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder and lock it for this run; the lock is released when the process ends in any way.

        Raises:
            RunFolderError: Another run has locked it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.file(LOCK), blocking=False)
        try:
            lock.acquire()
        except Timeout as error:
            raise RunFolderError(
                f"{self.path}: another run is writing to it. Wait for it to end, or choose another folder with --out."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def file(self, name: str) -> Path:
        return self.path / name

    def write(self, name: str, text: str) -> None:
        """Write a text file atomically."""
        if self.writes:
            with self._room_for(name), replacing(self.file(name)) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def write_tensors(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write a safetensors file atomically."""
        if self.writes:
            # Copies, because safetensors refuses tensors that share memory, such as tied weights.
            own = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
            with self._room_for(name), replacing(self.file(name)) as temporary:
                save_file(own, temporary)

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Add a line of JSON to a file."""
        if self.writes:
            with self._room_for(name), self.file(name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    @contextmanager
    def _room_for(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise RunFolderError(
                f"{self.file(name)}: cannot be written: {error}. Free disk space or correct the permissions, and "
                "resume."
            ) from error


def environment(seed: int, processes: int) -> dict[str, Any]:
    """Versions of packages and the machine, for ``environment.json``."""
    import timm
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
        "processes": processes,
        "seed": seed,
    }
