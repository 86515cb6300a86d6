"""Data sets whose images are read from files on demand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils._pytree import tree_map

from prunegate.data.batches import TEST_BATCH, WHOLE, Batch, Share, part_of
from prunegate.data.meaning import Meaning
from prunegate.data.mixing import mixed
from prunegate.data.moving import CPU, moved
from prunegate.data.randomness import order_of
from prunegate.data.samples import Collated, Part, Samples, collated
from prunegate.data.settings import MixupSettings
from prunegate.data.unreadable import UnreadableFiles
from prunegate.data.workers import Order, loaded
from prunegate.errors import DataError


@dataclass(frozen=True)
class LoadedData:
    """Training and test samples that are read, transformed and augmented batch by batch.

    Attributes:
        plain: The training samples, with the transform of the test samples.
        shape: Shape of one sample: channels, height, width.
        workers: Processes that read, started for each epoch.
        unreadable: Files that could not be read so far.
        device: The device of the batches, on which they are mixed.
        meaning: How pixels become inputs, and the class names.
    """

    train: Part
    plain: Part
    test: Part
    shape: tuple[int, int, int]
    num_classes: int | None
    batch_size: int
    mixup: MixupSettings
    workers: int
    unreadable: UnreadableFiles
    device: torch.device = CPU
    meaning: Meaning = field(default_factory=Meaning)

    def to(self, device: torch.device) -> LoadedData:
        """See `Data.to`."""
        return replace(self, device=device)

    @property
    def num_train(self) -> int:
        """How many training samples there are."""
        return len(self.train)

    @property
    def num_test(self) -> int:
        """How many test samples there are."""
        return len(self.test)

    @property
    def steps_per_epoch(self) -> int:
        return max(1, self.num_train // self.batch_size)

    def example_inputs(self, count: int) -> torch.Tensor:
        """The first ``count`` training inputs, not augmented; an unreadable one is replaced by the next."""
        return examples(self.plain, count, self.unreadable)

    def train_batches(self, seed: int, epoch: int, first: int = 0, share: Share = WHOLE) -> Iterator[Batch]:
        """See `Data.train_batches`."""
        part = part_of(self.batch_size, self.num_train, share, self.mixup.enabled)
        return self._train_batches(seed, epoch, first, share.rank, part)

    def _train_batches(self, seed: int, epoch: int, first: int, rank: int, part: slice) -> Iterator[Batch]:
        positions = torch.randperm(len(self.train), generator=order_of(seed, epoch))
        order = Order(positions, self.batch_size, range(first, self.steps_per_epoch), part)
        # The run stops beyond the limit anyway, so no more files are tried.
        samples = Samples(self.train, seed, epoch, tries=self.unreadable.limit + 1)
        for number, (batch, unreadable) in enumerate(self._loaded(samples, order), start=first):
            self.unreadable.note(unreadable)
            if len(batch.indices) < part.stop - part.start:
                raise _none_left(self.train)
            yield mixed(self._moved(batch), self.mixup, self.num_classes, seed, epoch, number, rank)

    def test_batches(self, share: Share = WHOLE) -> Iterator[Batch]:
        """The readable test samples in order; each of n processes takes every n-th batch."""
        size = min(TEST_BATCH, 4 * self.batch_size)
        numbers = range(share.rank, -(-len(self.test) // size), share.count)
        order = Order(torch.arange(len(self.test)), size, numbers, slice(None))
        for batch, unreadable in self._loaded(Samples(self.test, 0, 0, tries=1), order):
            self.unreadable.note(unreadable)
            if len(batch.indices):
                yield self._moved(batch)

    def _loaded(self, samples: Samples, order: Order) -> Iterator[Collated]:
        return loaded(samples, order, self.workers, pinned=self.device.type == "cuda")

    def _moved(self, batch: Batch) -> Batch:
        return Batch(moved(batch.inputs, self.device), tree_map(self._label_moved, batch.labels), batch.indices)

    def _label_moved(self, leaf: Any) -> Any:
        return moved(leaf, self.device) if isinstance(leaf, torch.Tensor) else leaf


def examples(part: Part, count: int, unreadable: UnreadableFiles) -> torch.Tensor:
    """The first ``count`` inputs of a part, (n, channels, height, width)."""
    samples = Samples(part, 0, 0, tries=unreadable.limit + 1)
    batch, result = collated([samples[position] for position in range(min(count, len(part)))])
    unreadable.note(result)
    if not len(batch.indices):
        raise _none_left(part)
    return batch.inputs


def _none_left(part: Part) -> DataError:
    return DataError(
        f"data: none of {len(part)} {part.name} samples can be read, expected images. The log names the files "
        "and the reasons."
    )
