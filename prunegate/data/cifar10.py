"""CIFAR-10 in its binary version, which can be read without pickle."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prunegate.data.splits import Split
from prunegate.errors import DataError

# The folders that the archive unpacks to.
CIFAR_FOLDERS = ("data/cifar-10-batches-bin", "cifar-10-batches-bin")
_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST = ("test_batch.bin",)
_CLASSES = 10
_PIXELS = 3 * 32 * 32


def cifar_folder(given: str | None) -> Path:
    """The folder with all files; raises DataError, with a remedy, if there is none."""
    looked_at = [given, f"{given}/cifar-10-batches-bin"] if given is not None else list(CIFAR_FOLDERS)
    for folder in map(Path, looked_at):
        if all((folder / name).is_file() for name in (*_TRAIN, *_TEST)):
            return folder
    raise DataError(
        f"data.folder: found no CIFAR-10 in {', '.join(looked_at)}, expected files like {_TRAIN[0]}, the binary "
        "version. Run: mkdir -p data && curl https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz | tar xz -C data."
    )


def read_cifar10(given: str | None) -> tuple[Split, Split]:
    """Training and test images, uint8, (samples, 3, 32, 32), with class indices."""
    folder = cifar_folder(given)
    return _read(folder, _TRAIN), _read(folder, _TEST)


def _read(folder: Path, names: tuple[str, ...]) -> Split:
    parts = []
    for name in names:
        raw = np.fromfile(folder / name, dtype=np.uint8)
        if raw.size == 0 or raw.size % (1 + _PIXELS) or raw[:: 1 + _PIXELS].max() >= _CLASSES:
            raise DataError(
                f"{folder / name}: found {raw.size:,} bytes, expected records of one label below {_CLASSES} and "
                f"{_PIXELS:,} pixels. Download it again."
            )
        parts.append(raw.reshape(-1, 1 + _PIXELS))
    records = np.concatenate(parts)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)
