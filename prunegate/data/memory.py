"""Small data sets that are held in memory: digits, Fashion-MNIST and CIFAR-10."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from prunegate.data.batches import TEST_BATCH, WHOLE, Batch, Share, part_of
from prunegate.data.cifar10 import cifar_folder, read_cifar10
from prunegate.data.digits import check_digits, read_digits
from prunegate.data.fashion_mnist import fashion_folder, read_fashion
from prunegate.data.meaning import Meaning
from prunegate.data.mixing import mixed
from prunegate.data.moving import CPU, fits, moved
from prunegate.data.randomness import order_of
from prunegate.data.settings import DataSettings, MixupSettings
from prunegate.data.shifting import Moves
from prunegate.data.splits import Split

_DIGITS = tuple("0123456789")
_CLASS_NAMES = {
    "digits": _DIGITS,
    "fashion_mnist": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
    ),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}  # fmt: skip
_LARGEST_PIXEL = {"digits": 16.0, "fashion_mnist": 255.0, "cifar10": 255.0}
_CLASSES = 10  # in every data set, even if train_limit leaves some out


@dataclass(frozen=True)
class ImageData:
    """Images in memory, float32, normalised, (samples, channels, height, width), with class indices.

    Attributes:
        augment: The random augmentation of training batches.
        mixup: How training batches are then mixed.
        device: The device of the batches.
        meaning: How pixels became these images, and the class names.
    """

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    num_classes: int
    batch_size: int
    augment: str
    mixup: MixupSettings = field(default_factory=MixupSettings)
    device: torch.device = CPU
    meaning: Meaning = field(default_factory=Meaning)

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    @property
    def num_train(self) -> int:
        """How many training samples there are."""
        return len(self.train_labels)

    @property
    def num_test(self) -> int:
        """How many test samples there are."""
        return len(self.test_labels)

    @property
    def steps_per_epoch(self) -> int:
        return max(1, self.num_train // self.batch_size)

    def to(self, device: torch.device) -> ImageData:
        """See `Data.to`. If the device has little free memory, the images are not moved, and each batch is copied to
        it."""
        placed = replace(self, device=device)
        tensors = self.train_images, self.train_labels, self.test_images, self.test_labels
        if not fits(tensors, device):
            return placed
        train, train_labels, test, test_labels = (tensor.to(device) for tensor in tensors)
        return replace(placed, train_images=train, train_labels=train_labels, test_images=test, test_labels=test_labels)

    def example_inputs(self, count: int) -> torch.Tensor:
        """The first ``count`` training images."""
        return self.train_images[:count]

    def train_batches(self, seed: int, epoch: int, first: int = 0, share: Share = WHOLE) -> Iterator[Batch]:
        """See `Data.train_batches`."""
        part = part_of(self.batch_size, self.num_train, share, self.mixup.enabled)
        return self._train_batches(seed, epoch, first, share.rank, part)

    def _train_batches(self, seed: int, epoch: int, first: int, rank: int, part: slice) -> Iterator[Batch]:
        # Every epoch draws one number from torch's global state first, so that a seed gives the same dropout as in
        # earlier versions. A resumed epoch drew it when it started, so other draws continue as without an interruption.
        if first == 0:
            _draw_globally()
        order, moves = self._drawn(seed, epoch)
        order_there, moves = moved(order, self.train_images.device), moves.to(self.device)
        size = min(self.batch_size, self.num_train)
        for number in range(first, self.steps_per_epoch):
            which = slice(number * size + part.start, number * size + part.stop)
            inputs, labels = (
                moved(held[order_there[which]], self.device) for held in (self.train_images, self.train_labels)
            )
            batch = Batch(moves.part(which).of(inputs), labels, order[which])
            yield mixed(batch, self.mixup, self.num_classes, seed, epoch, number, rank)

    def _drawn(self, seed: int, epoch: int) -> tuple[torch.Tensor, Moves]:
        """The samples of an epoch in their order, and their augmentation.

        Everything is drawn at once, on the CPU. A device then gets it in one copy, with the same numbers on every
        device, and a resumed epoch gets the same batches.
        """
        generator = order_of(seed, epoch)
        order = torch.randperm(self.num_train, generator=generator)
        if self.num_train < self.batch_size:
            # Unused, so that a seed gives the same augmentation as in earlier versions.
            torch.randperm(self.num_train, generator=generator)
        size = min(self.batch_size, self.num_train)
        steps = range(self.steps_per_epoch)
        return order, Moves.joined([Moves.draw(size, self.shape[1], self.augment, generator) for _ in steps])

    def test_batches(self, share: Share = WHOLE) -> Iterator[Batch]:
        """The test images in order, in batches of up to 512; each of n processes takes every n-th."""
        _draw_globally()  # as above
        starts = range(0, len(self.test_labels), TEST_BATCH)
        for start in starts[share.rank :: share.count]:
            indices = torch.arange(start, min(start + TEST_BATCH, len(self.test_labels)))
            # Copies: a model may change its inputs in place.
            inputs, labels = (
                moved(held[start : start + TEST_BATCH].clone(), self.device)
                for held in (self.test_images, self.test_labels)
            )
            yield Batch(inputs, labels, indices)


def _draw_globally() -> None:
    torch.empty((), dtype=torch.int64).random_()


def check_memory(settings: DataSettings) -> None:
    """Raise DataError if the data is missing; reads nothing."""
    if settings.name == "digits":
        check_digits(settings.folder)
    elif settings.name == "cifar10":
        cifar_folder(settings.folder)
    else:
        fashion_folder(settings.folder)


def load_memory(settings: DataSettings) -> ImageData:
    """Read a data set into memory, resized and normalised by its training images."""
    train, test = _splits(settings)
    if settings.train_limit is not None:
        train = (train[0][: settings.train_limit], train[1][: settings.train_limit])
    images = [_resized(_as_images(x), settings.image_size) for x, _ in (train, test)]
    mean = images[0].mean((0, 2, 3), keepdim=True)
    deviation = images[0].std((0, 2, 3), keepdim=True)
    labels = [torch.from_numpy(y).long() for _, y in (train, test)]
    largest = _LARGEST_PIXEL[settings.name]
    shares = [tuple((values / largest).flatten().tolist()) for values in (mean, deviation)]
    return ImageData(
        (images[0] - mean) / deviation,
        labels[0],
        (images[1] - mean) / deviation,
        labels[1],
        _CLASSES,
        settings.batch_size,
        settings.augment,
        settings.mixup,
        meaning=Meaning(largest, shares[0], shares[1], _CLASS_NAMES[settings.name]),
    )


def _splits(settings: DataSettings) -> tuple[Split, Split]:
    if settings.name == "digits":
        return read_digits()
    return read_cifar10(settings.folder) if settings.name == "cifar10" else read_fashion(settings.folder)


def _as_images(pixels: npt.NDArray[np.uint8] | npt.NDArray[np.float64]) -> torch.Tensor:
    """float32, (samples, channels, height, width)."""
    images = torch.from_numpy(pixels).float()
    return images[:, None] if images.dim() == 3 else images


def _resized(images: torch.Tensor, size: int) -> torch.Tensor:
    shrinks = size < images.shape[-1]  # then each pixel is a mean of several
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=shrinks)
