"""Batches read by worker processes, which may die."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader

from prunegate.data.samples import Collated, Samples, collated
from prunegate.errors import DataError
from prunegate.own_code import importable_from_here

logger = logging.getLogger(__name__)

_DEATHS = 3  # at one batch; then it is no accident
# Of torch's RuntimeErrors: the second where the thread that pins batches meets what a dead worker has left half done.
# Those of samples start otherwise.
_PREFIXES = ("DataLoader worker (pid", "Pin memory thread exited")


@dataclass(frozen=True)
class Order:
    """Positions of samples in batches: which batches, and which part of each.

    Attributes:
        positions: All positions in their order, (n,).
        size: Of a whole batch.
        numbers: Which batches.
        part: What this process takes of each.
    """

    positions: torch.Tensor
    size: int
    numbers: range
    part: slice

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[list[int]]:
        for number in self.numbers:
            batch = self.positions[number * self.size : (number + 1) * self.size]
            yield batch[self.part].tolist()

    def after(self, count: int) -> Order:
        return replace(self, numbers=self.numbers[count:])


def loaded(samples: Samples, order: Order, workers: int, pinned: bool = False) -> Iterator[Collated]:
    """The batches of ``order``.

    A worker that dies, mostly because the system is out of memory and kills it, costs time and nothing else: batches
    depend on their position alone, so new workers go on where the old ones were.

    Args:
        pinned: Batches are put where CUDA copies them from while the program goes on; by a thread beside the workers.

    Raises:
        DataError: Workers die at one batch again and again, or a sample is none.
    """
    position = deaths = 0
    batches: Iterator[Collated] | None = None
    while True:
        reason = ""
        try:
            if batches is None:
                batches = _started(samples, order.after(position), workers, pinned)
            result = next(batches, None)
        except RuntimeError as error:
            if not str(error).startswith(_PREFIXES):
                raise
            reason = str(error)
        except (OSError, EOFError) as error:
            # A worker that dies while a batch is fetched from it. Samples raise none of these: see `Part.read`.
            if not workers:
                raise
            reason = f"{type(error).__name__}: {error}"
        if reason:
            deaths += 1
            batches = None  # first, so that the other old workers leave before new ones come
            _note_death(reason, deaths, workers)
            continue
        if result is None:
            return
        yield result
        position += 1
        deaths = 0


def _note_death(reason: str, deaths: int, workers: int) -> None:
    if deaths == _DEATHS:
        raise DataError(
            f"data.workers: found {deaths} dead workers at one and the same batch, expected them to live: {reason} "
            f"The likely cause is memory. Lower data.workers, found {workers}, or data.batch_size; with "
            "data.workers=0 images are read in the process itself."
        )
    logger.warning("a data worker died; new ones go on at the same batch: %s", reason)


def _started(samples: Samples, order: Order, workers: int, pinned: bool) -> Iterator[Collated]:
    # Not timm's `create_loader`: it makes its own sampler and has no argument for another, so neither the order nor
    # the position to start from could be chosen, and its workers seed themselves by their number, not by sample.
    loader: DataLoader[Any] = DataLoader(
        samples,
        batch_sampler=order,
        num_workers=min(workers, len(order)),
        collate_fn=collated,
        pin_memory=pinned,
        generator=torch.Generator(),  # else it draws a number from torch's global state
    )
    with _no_signal_handler(), importable_from_here():
        return iter(loader)


@contextmanager
def _no_signal_handler() -> Iterator[None]:
    """Take away the handler that torch sets when the first workers of a process start.

    It hears of a dead worker and raises wherever the program happens to be: in the midst of a training step, where
    nobody could go on. Without it torch looks after its workers every five seconds while it waits for a batch.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield  # then torch sets none either
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None and signal.getsignal(signal.SIGCHLD) is not before:
            signal.signal(signal.SIGCHLD, before)
