"""Data sets: scikit-learn's digits, which need no download, and Fashion-MNIST and CIFAR-10 where they are."""

from __future__ import annotations

import gzip
import importlib.util
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset

from prunegate.errors import DataError
from prunegate.recipe.cifar import cifar_folder, read_cifar10
from prunegate.recipe.schema import DataSettings

Batch = tuple[torch.Tensor, torch.Tensor]

# Where Debian's package dataset-fashion-mnist puts its files, and where torchvision downloads to.
_FASHION_FOLDERS = ("/usr/share/datasets/fashion-mnist", "data/FashionMNIST/raw")
_CLASSES = 10  # of either data set, also where train_limit leaves some of them out
_FASHION_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


@dataclass(frozen=True)
class ImageData:
    """Images in memory, float32, normalised, (samples, channels, height, width), with class indices.

    Attributes:
        augment: The random change made to every training batch.
    """

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    num_classes: int
    batch_size: int
    augment: str

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self.train_labels) // self.batch_size)

    def train_batches(self, seed: int, epoch: int) -> Iterator[Batch]:
        """Shuffled, augmented batches of one epoch; the last, smaller one is left out. One seed, one order."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        dataset = TensorDataset(self.train_images, self.train_labels)
        sampler = BatchSampler(
            RandomSampler(dataset, generator=generator),
            self.batch_size,
            drop_last=len(dataset) >= self.batch_size,
        )
        for images, labels in DataLoader(dataset, sampler=sampler, batch_size=None):
            yield augmented(images, self.augment, generator), labels

    def test_batches(self) -> Iterator[Batch]:
        """The test images in order, in batches of up to 512."""
        dataset = TensorDataset(self.test_images, self.test_labels)
        sampler = BatchSampler(SequentialSampler(dataset), 512, drop_last=False)
        yield from DataLoader(dataset, sampler=sampler, batch_size=None)


def augmented(images: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    """A batch moved by up to an eighth of its side, each image by itself, and mirrored for ``shift_flip``."""
    if kind == "none":
        return images
    count, _, height, width = images.shape
    reach = max(1, height // 8)
    padded = F.pad(images, [reach] * 4, mode="replicate")
    shift = torch.randint(0, 2 * reach + 1, (count, 2), generator=generator)
    rows = shift[:, :1] + torch.arange(height)
    columns = shift[:, 1:] + torch.arange(width)
    if kind == "shift_flip":
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(count)[:, None, None]
    moved = padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    # `contiguous()` would leave images of one channel as they are, whose strides torch takes for channels-last.
    # There oneDNN's gradient of a strided 1 × 1 convolution of few channels, as pruning leaves them, writes beyond
    # its memory (https://github.com/uxlfoundation/oneDNN/issues/6035).
    return moved.clone(memory_format=torch.contiguous_format)


def check_data(settings: DataSettings) -> None:
    """Raise DataError if the data is not there; nothing is read."""
    if settings.name == "digits":
        if importlib.util.find_spec("sklearn") is None:
            raise DataError(
                "data.name: digits needs scikit-learn, which is not installed. Its wheel holds the images. "
                "Run: pip install 'prunegate[demo]'."
            )
        if settings.folder is not None:
            raise DataError("data.folder: digits come with scikit-learn, expected no folder. Remove the key.")
    elif settings.name == "cifar10":
        cifar_folder(settings.folder)
    else:
        _fashion_folder(settings.folder)


def load_data(settings: DataSettings) -> ImageData:
    """Read a data set into memory, resized and normalised by its training images."""
    check_data(settings)
    train, test = _splits(settings)
    if settings.train_limit is not None:
        train = (train[0][: settings.train_limit], train[1][: settings.train_limit])
    images = [_resized(_as_images(x), settings.image_size) for x, _ in (train, test)]
    mean = images[0].mean((0, 2, 3), keepdim=True)
    deviation = images[0].std((0, 2, 3), keepdim=True)
    labels = [torch.from_numpy(y).long() for _, y in (train, test)]
    return ImageData(
        (images[0] - mean) / deviation,
        labels[0],
        (images[1] - mean) / deviation,
        labels[1],
        _CLASSES,
        settings.batch_size,
        settings.augment,
    )


def _splits(settings: DataSettings) -> tuple[Split, Split]:
    if settings.name == "digits":
        return _digits()
    return read_cifar10(settings.folder) if settings.name == "cifar10" else _fashion(settings.folder)


def _as_images(pixels: npt.NDArray[np.uint8] | npt.NDArray[np.float64]) -> torch.Tensor:
    """float32, (samples, channels, height, width)."""
    images = torch.from_numpy(pixels).float()
    return images[:, None] if images.dim() == 3 else images


def _resized(images: torch.Tensor, size: int) -> torch.Tensor:
    shrinks = size < images.shape[-1]  # then each pixel is a mean of several
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=shrinks)


Split = tuple[npt.NDArray[np.uint8] | npt.NDArray[np.float64], npt.NDArray[np.int64]]


def _digits() -> tuple[Split, Split]:
    """1,442 training and 355 test images of 8 × 8 pixels; every fifth of each class is for testing."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images, labels = found.images, found.target.astype(np.int64)
    # The rank of each image within its class decides, so that both parts hold all classes alike.
    rank = np.empty(len(labels), dtype=np.int64)
    for digit in range(10):
        of_digit = np.flatnonzero(labels == digit)
        rank[of_digit] = np.arange(len(of_digit))
    test = rank % 5 == 4
    return (images[~test], labels[~test]), (images[test], labels[test])


def _fashion_folder(given: str | None) -> Path:
    # torchvision's root holds its files two folders further down.
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


def _fashion(given: str | None) -> tuple[Split, Split]:
    folder = _fashion_folder(given)
    train, test = (_fashion_part(folder, *_FASHION_FILES[part]) for part in ("train", "test"))
    return train, test


def _fashion_part(folder: Path, images_name: str, labels_name: str) -> Split:
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
        # A copy, because what a bytes object holds cannot be written to, and tensors can.
        return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dims).reshape(shape).copy()
    except (OSError, EOFError, IndexError, ValueError, struct.error, zlib.error) as error:
        raise DataError(f"{existing}: cannot be read as an IDX file: {error}. Install or download it again.") from error
