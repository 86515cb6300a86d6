"""The interface of data sets for a training loop: batches that depend only on their position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch

from prunegate.data.meaning import Meaning
from prunegate.errors import DataError


@dataclass(frozen=True)
class Share:
    """The part of every batch that this process takes, of ``count`` processes; the parts make up the whole batch."""

    rank: int = 0
    count: int = 1


WHOLE = Share()
TEST_BATCH = 512  # largest batch in testing


class Batch(NamedTuple):
    """Samples of one step.

    Attributes:
        inputs: float32, (n, channels, height, width).
        labels: Class indices, int64, (n,), or class probabilities, float32, (n, classes), if samples are mixed. With
            labels of any form: tensors of n labels, or lists and dicts of these.
        indices: Indices of the samples in the data set, int64, (n,), on the CPU; for messages.
    """

    inputs: torch.Tensor
    labels: Any
    indices: torch.Tensor


class Data(Protocol):
    """Training and test samples in batches.

    The batches of an epoch are a pure function of settings, seed, epoch and position, whatever the number of
    workers: a resumed run gets the same batches. They are on the CPU unless `to` sets a device, with the same values on
        every device.
    """

    def to(self, device: torch.device) -> Data:
        """The same data with inputs and labels of its batches on ``device``, copied without synchronisation."""

    @property
    def num_classes(self) -> int | None:
        """None if labels are of any form."""

    @property
    def batch_size(self) -> int:
        """Samples in one step, over all processes."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one sample: channels, height, width."""

    @property
    def num_train(self) -> int:
        """Number of training samples."""

    @property
    def num_test(self) -> int:
        """Number of test samples."""

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def meaning(self) -> Meaning:
        """How pixels become inputs, and the class names."""

    def example_inputs(self, count: int) -> torch.Tensor:
        """The first ``count`` training inputs, not augmented, for checks of a model."""

    def train_batches(self, seed: int, epoch: int, first: int = 0, share: Share = WHOLE) -> Iterator[Batch]:
        """Shuffled, augmented batches of one epoch from its ``first``-th on, without an incomplete last one.

        Raises:
            DataError: At once, if the batches cannot be divided among the processes; later, if samples cannot be read.
        """

    def test_batches(self, share: Share = WHOLE) -> Iterator[Batch]:
        """The test samples in order, each once; each of several processes takes every ``share.count``-th batch."""


def part_of(batch_size: int, samples: int, share: Share, mixes: bool) -> slice:
    """The contiguous part of every training batch that a process takes.

    Every process finds the same mistakes, so that none waits for one that has failed.

    Args:
        samples: Number of training samples; if there are fewer than ``batch_size``, they are one batch.
        mixes: Whether the samples of a part are mixed with each other, in pairs.

    Raises:
        DataError: The batch cannot be divided in this way.
    """
    size = min(batch_size, samples)
    bounds = [rank * size // share.count for rank in range(share.count + 1)]
    if batch_size % share.count:
        raise DataError(
            f"data.batch_size: found {batch_size}, expected a multiple of {share.count}. It counts the samples of "
            f"all {share.count} processes, which take equal parts. "
            f"Set data.batch_size={batch_size + share.count - batch_size % share.count}."
        )
    if size < share.count:
        raise DataError(
            f"data: found {samples} training samples for {share.count} processes, expected at least one for each. "
            "Use fewer processes or raise data.train_limit."
        )
    odd = [after - before for before, after in pairwise(bounds) if (after - before) % 2]
    if mixes and odd:
        raise DataError(
            f"data.mixup: found a batch of {odd[0]} samples in a process, expected an even number. Samples are mixed "
            f"in pairs. Set data.batch_size to a multiple of {2 * share.count} that the training set holds."
        )
    return slice(bounds[share.rank], bounds[share.rank + 1])
