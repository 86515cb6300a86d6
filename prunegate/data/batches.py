"""What a training loop sees of a data set: batches that depend on their position alone."""

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
    """Which part of every batch this process takes, of ``count`` processes; the parts add up to the whole batch."""

    rank: int = 0
    count: int = 1


WHOLE = Share()
TEST_BATCH = 512  # largest number of samples that are tested at once


class Batch(NamedTuple):
    """Samples of one step.

    Attributes:
        inputs: float32, (n, channels, height, width).
        labels: Class indices, int64, (n,), or class probabilities, float32, (n, classes), where samples are mixed.
            Where labels are of any form: tensors of n labels, or lists and dicts of these.
        indices: Which samples of the data set these are, int64, (n,), on the CPU; for messages.
    """

    inputs: torch.Tensor
    labels: Any
    indices: torch.Tensor


class Data(Protocol):
    """Training and test samples in batches.

    The batches of an epoch are a pure function of settings, seed, epoch and position, whatever the number of
    workers: a run that goes on from its middle sees what it would have seen. They are on the CPU until `to` says
    where they are wanted; the same numbers everywhere.
    """

    def to(self, device: torch.device) -> Data:
        """The same data with inputs and labels of its batches on ``device``; nothing waits for them there."""

    @property
    def num_classes(self) -> int | None:
        """None where labels are of any form."""

    @property
    def batch_size(self) -> int:
        """Samples in one step, over all processes."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one sample: channels, height, width."""

    @property
    def num_train(self) -> int:
        """How many training samples there are."""

    @property
    def num_test(self) -> int:
        """How many test samples there are."""

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def meaning(self) -> Meaning:
        """How pixels become inputs, and what classes are called."""

    def example_inputs(self, count: int) -> torch.Tensor:
        """The first ``count`` training inputs, not augmented, for checks of a model."""

    def train_batches(self, seed: int, epoch: int, first: int = 0, share: Share = WHOLE) -> Iterator[Batch]:
        """Shuffled, augmented batches of one epoch from its ``first``-th on; the last, smaller one is left out.

        Raises:
            DataError: The batches cannot be shared by so many processes, at once; later, samples that cannot be read.
        """

    def test_batches(self, share: Share = WHOLE) -> Iterator[Batch]:
        """The test samples in order, each once; of several processes each takes every ``share.count``-th batch."""


def part_of(batch_size: int, samples: int, share: Share, mixes: bool) -> slice:
    """The contiguous part of every training batch that a process takes.

    Every process finds the same mistakes, so that none waits for one that has given up.

    Args:
        samples: In the training set; if there are fewer than ``batch_size``, they are one batch.
        mixes: The samples of a part are mixed with each other, in pairs.

    Raises:
        DataError: The batch cannot be divided so.
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
            f"data: found {samples} training samples for {share.count} processes, expected one for each at least. "
            "Use fewer processes or raise data.train_limit."
        )
    odd = [after - before for before, after in pairwise(bounds) if (after - before) % 2]
    if mixes and odd:
        raise DataError(
            f"data.mixup: found a batch of {odd[0]} samples in a process, expected an even number. Samples are mixed "
            f"in pairs. Set data.batch_size to a multiple of {2 * share.count} that the training set holds."
        )
    return slice(bounds[share.rank], bounds[share.rank + 1])
