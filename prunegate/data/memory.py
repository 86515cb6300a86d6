"""Small data sets that are held in memory: digits, Fashion-MNIST and CIFAR-10."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset

from prunegate.data.batches import TEST_BATCH, WHOLE, Batch, Share, part_of
from prunegate.data.cifar10 import cifar_folder, read_cifar10
from prunegate.data.digits import check_digits, read_digits
from prunegate.data.fashion_mnist import fashion_folder, read_fashion
from prunegate.data.mixing import mixed
from prunegate.data.randomness import order_of
from prunegate.data.settings import DataSettings, MixupSettings
from prunegate.data.shifting import Moves
from prunegate.data.splits import Split

_CLASSES = 10  # of each data set, also where train_limit leaves some of them out


@dataclass(frozen=True)
class ImageData:
    """Images in memory, float32, normalised, (samples, channels, height, width), with class indices.

    Attributes:
        augment: The random change made to every training batch.
        mixup: How training batches are mixed after that.
    """

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    num_classes: int
    batch_size: int
    augment: str
    mixup: MixupSettings = field(default_factory=MixupSettings)

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    @property
    def num_train(self) -> int:
        """How many training samples there are."""
        return len(self.train_labels)

    @property
    def steps_per_epoch(self) -> int:
        return max(1, self.num_train // self.batch_size)

    def example_inputs(self, count: int) -> torch.Tensor:
        """The first ``count`` training images."""
        return self.train_images[:count]

    def train_batches(self, seed: int, epoch: int, first: int = 0, share: Share = WHOLE) -> Iterator[Batch]:
        """See `Data.train_batches`."""
        part = part_of(self.batch_size, self.num_train, share, self.mixup.enabled)
        return self._train_batches(seed, epoch, first, share.rank, part)

    def _train_batches(self, seed: int, epoch: int, first: int, rank: int, part: slice) -> Iterator[Batch]:
        generator = order_of(seed, epoch)
        dataset = _indexed(self.train_images, self.train_labels)
        sampler = iter(
            BatchSampler(
                RandomSampler(dataset, generator=generator),
                self.batch_size,
                drop_last=len(dataset) >= self.batch_size,
            )
        )
        for _, indices in zip(range(first), sampler, strict=False):
            Moves.draw(len(indices), self.shape[1], self.augment, generator)
        # A loader draws one number from torch's global state when it starts. An epoch that is taken up again drew it
        # when it began: what is drawn beside the batches, such as the gates' noise, goes on as if never stopped.
        own = None if first == 0 else torch.Generator()
        loader = DataLoader(dataset, sampler=sampler, batch_size=None, generator=own)
        for number, (images, labels, indices) in enumerate(loader, start=first):
            moves = Moves.draw(len(indices), self.shape[1], self.augment, generator)
            batch = Batch(moves.of(images, part), labels[part], indices[part])
            yield mixed(batch, self.mixup, self.num_classes, seed, epoch, number, rank)

    def test_batches(self, share: Share = WHOLE) -> Iterator[Batch]:
        """The test images in order, in batches of up to 512; of several processes each takes every n-th."""
        dataset = _indexed(self.test_images, self.test_labels)
        batches = BatchSampler(SequentialSampler(dataset), TEST_BATCH, drop_last=False)
        sampler = itertools.islice(batches, share.rank, None, share.count)
        yield from map(Batch._make, DataLoader(dataset, sampler=sampler, batch_size=None))


def _indexed(images: torch.Tensor, labels: torch.Tensor) -> TensorDataset:
    return TensorDataset(images, labels, torch.arange(len(labels)))


def check_memory(settings: DataSettings) -> None:
    """Raise DataError if the data is not there; nothing is read."""
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
    return ImageData(
        (images[0] - mean) / deviation,
        labels[0],
        (images[1] - mean) / deviation,
        labels[1],
        _CLASSES,
        settings.batch_size,
        settings.augment,
        settings.mixup,
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
