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

_DEATHS = 3  # at the same batch before the run stops
# Starts of torch's RuntimeErrors for dead workers. The second is raised if the pinning thread gets incomplete data from
# a dead worker. Errors of samples start differently.
_PREFIXES = ("DataLoader worker (pid", "Pin memory thread exited")


@dataclass(frozen=True)
class Order:
    """Positions of samples in batches: which batches, and which part of each.

    Attributes:
        positions: All positions in their order, (n,).
        size: Size of a whole batch.
        numbers: Which batches.
        part: The part of each that this process takes.
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

    A dead worker, mostly killed because the system is out of memory, only costs time: batches depend only on their
    position, so new workers continue at the same batch.

    Args:
        pinned: Batches are pinned for asynchronous copies to CUDA, by an additional thread.

    Raises:
        DataError: Workers keep dying at one batch, or a sample is invalid.
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
            # A worker died while a batch was fetched. Samples raise none of these errors: see `Part.read`.
            if not workers:
                raise
            reason = f"{type(error).__name__}: {error}"
        if reason:
            deaths += 1
            batches = None  # first, so that the other old workers end before new ones start
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
            f"data.workers: {deaths} workers died at the same batch: {reason} The likely cause is a lack of memory. "
            f"Lower data.workers, found {workers}, or data.batch_size; with data.workers=0 images are read in the "
            "process itself."
        )
    logger.warning("a data worker died; new ones continue at the same batch: %s", reason)


def _started(samples: Samples, order: Order, workers: int, pinned: bool) -> Iterator[Collated]:
    # Not timm's `create_loader`, which creates its own sampler without an argument for another, so neither the order
    # nor the start could be chosen, and whose workers are seeded by their index, not by sample.
    loader: DataLoader[Any] = DataLoader(
        samples,
        batch_sampler=order,
        num_workers=min(workers, len(order)),
        collate_fn=collated,
        pin_memory=pinned,
        generator=torch.Generator(),  # otherwise it draws a number from torch's global state
    )
    with _no_signal_handler(), importable_from_here():
        return iter(loader)


@contextmanager
def _no_signal_handler() -> Iterator[None]:
    """Remove the signal handler that torch installs when the first workers of a process start.

    It raises an error for a dead worker at any point of the program, such as within a training step, which could not be
    continued. Without it, torch checks its workers every five seconds while it waits for a batch.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield  # torch installs none either in this case
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None and signal.getsignal(signal.SIGCHLD) is not before:
            signal.signal(signal.SIGCHLD, before)
