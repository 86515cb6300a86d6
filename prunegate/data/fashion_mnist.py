"""Fashion-MNIST in IDX files, from Debian or torchvision."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from prunegate.data.splits import Split
from prunegate.errors import DataError

# The folders of Debian's package dataset-fashion-mnist and of torchvision's download.
_FASHION_FOLDERS = ("/usr/share/datasets/fashion-mnist", "data/FashionMNIST/raw")
_CLASSES = 10
_FASHION_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def fashion_folder(given: str | None) -> Path:
    """The folder with all files; raises DataError, with remedies, if there is none."""
    # The files are two folders below torchvision's root.
    looked_at = [given, f"{given}/FashionMNIST/raw"] if given is not None else list(_FASHION_FOLDERS)
    for folder in map(Path, looked_at):
        if all(_existing(folder / name) for names in _FASHION_FILES.values() for name in names):
            return folder
    raise DataError(
        f"data.folder: found no Fashion-MNIST in {', '.join(looked_at)}, expected files like "
        f"{_FASHION_FILES['train'][0]}(.gz). Run: apt-get install dataset-fashion-mnist, or "
        "python -c \"from torchvision.datasets import FashionMNIST; FashionMNIST('data', download=True)\"."
    )


def _existing(path: Path) -> Path | None:
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    return None


def read_fashion(given: str | None) -> tuple[Split, Split]:
    """Training and test images, uint8, (samples, height, width), with class indices."""
    folder = fashion_folder(given)
    train, test = (_part(folder, *_FASHION_FILES[part]) for part in ("train", "test"))
    return train, test


def _part(folder: Path, images_name: str, labels_name: str) -> Split:
    images, labels = _idx(folder / images_name), _idx(folder / labels_name)
    if images.ndim != 3 or labels.shape != images.shape[:1] or labels.size == 0 or labels.max() >= _CLASSES:
        raise DataError(
            f"{folder}: found images {images.shape} and labels {labels.shape}, expected (n, height, width) and (n,), "
            f"labels below {_CLASSES}. These are not the files of Fashion-MNIST. Install or download them again."
        )
    return images, labels.astype(np.int64)


def _idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read an IDX file of bytes, gzipped or not."""
    existing = _existing(path) or path
    try:
        raw = existing.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        if raw[:3] != b"\0\0\x08":
            raise ValueError("does not start as IDX files of bytes do")
        dims = raw[3]
        shape = struct.unpack(f">{dims}I", raw[4 : 4 + 4 * dims])
        # A copy, because a bytes object is read-only and tensors are not.
        return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dims).reshape(shape).copy()
    except (OSError, EOFError, IndexError, ValueError, struct.error, zlib.error) as error:
        raise DataError(f"{existing}: cannot be read as an IDX file: {error}. Install or download it again.") from error
