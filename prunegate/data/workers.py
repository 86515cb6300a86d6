"""Batches read by worker processes, which may die."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
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
_PREFIX = "DataLoader worker (pid"  # of torch's RuntimeError; those of samples start otherwise


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


def loaded(samples: Samples, order: Order, workers: int) -> Iterator[Collated]:
    """The batches of ``order``.

    A worker that dies, mostly because the system is out of memory and kills it, costs time and nothing else: batches
    depend on their position alone, so new workers go on where the old ones were.

    Raises:
        DataError: Workers die at one batch again and again, or a sample is none.
    """
    position = deaths = 0
    batches: Iterator[Collated] | None = None
    while True:
        reason = ""
        try:
            if batches is None:
                batches = _started(samples, order.after(position), workers)
            with _deaths_heard():
                found = next(batches, None)
        except RuntimeError as error:
            if not str(error).startswith(_PREFIX):
                raise
            reason = str(error)
        if reason:
            deaths += 1
            batches = None  # first, so that the other old workers leave before new ones come
            _note_death(reason, deaths, workers)
            continue
        if found is None:
            return
        yield found
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


def _started(samples: Samples, order: Order, workers: int) -> Iterator[Collated]:
    # Not timm's `create_loader`: it makes its own sampler and has no argument for another, so neither the order nor
    # the position to start from could be chosen, and its workers seed themselves by their number, not by sample.
    loader: DataLoader[Any] = DataLoader(
        samples,
        batch_sampler=order,
        num_workers=min(workers, len(order)),
        collate_fn=collated,
        generator=torch.Generator(),  # else it draws a number from torch's global state
    )
    with _handler_kept(), importable_from_here():
        return iter(loader)


# torch hears of a dead worker by a signal handler, which raises wherever the program happens to be: in the midst of a
# training step, where nobody could go on. So its handler is in place only while we wait for a batch.
_torchs_handler: Callable[[int, Any], Any] | None = None


def _in_main_thread() -> bool:
    return hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()


@contextmanager
def _handler_kept() -> Iterator[None]:
    """Take away the handler that torch sets, once in a process, when the first workers start."""
    global _torchs_handler
    if not _in_main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        after = signal.getsignal(signal.SIGCHLD)
        if after is not before and callable(after):
            _torchs_handler = after
            signal.signal(signal.SIGCHLD, before)


@contextmanager
def _deaths_heard() -> Iterator[None]:
    """Within the block torch raises RuntimeError when a worker dies, or if one has died since the last time."""
    if _torchs_handler is None or not _in_main_thread():
        yield  # then torch looks every few seconds
        return
    before = signal.signal(signal.SIGCHLD, _torchs_handler)
    try:
        _torchs_handler(signal.SIGCHLD, None)
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)
