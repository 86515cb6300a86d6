"""What a benchmark varies: batch sizes, threads, layouts, precisions and runtimes."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch

from prunegate.errors import BenchError, nearest
from prunegate.runtimes import LAYOUTS, PRECISIONS, RUNTIMES, Setting


@dataclass(frozen=True)
class BenchSettings:
    """The values that are combined with each other, each in the order of the output.

    Attributes:
        threads: Of torch and ONNX Runtime on the CPU; empty for the present number.
        seconds: Approximate time for each measured row; up to three times that while times are not steady.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        BenchError: A value is unknown, or impossible on this machine.
    """

    batch_sizes: tuple[int, ...] = (1, 16)
    threads: tuple[int, ...] = ()
    layouts: tuple[str, ...] = ("contiguous",)
    precisions: tuple[str, ...] = ("float32",)
    runtimes: tuple[str, ...] = ("eager",)
    seconds: float = 1.0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.threads:
            object.__setattr__(self, "threads", (torch.get_num_threads(),))
        _check_numbers("--batch-sizes", self.batch_sizes, None)
        _check_numbers("--threads", self.threads, os.cpu_count())
        _check_names("--layouts", self.layouts, LAYOUTS)
        _check_names("--precisions", self.precisions, PRECISIONS)
        _check_names("--runtimes", self.runtimes, RUNTIMES)
        if not 0 < self.seconds <= _MOST_SECONDS:
            raise BenchError(f"--seconds: found {self.seconds:g}, expected more than 0 and at most {_MOST_SECONDS}.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise BenchError("--device: found cuda, but torch finds no GPU here. Use --device cpu, or leave it out.")

    def settings(self, threads: int) -> Iterator[Setting]:
        """Every combination with this number of threads."""
        for runtime, precision, layout in product(self.runtimes, self.precisions, self.layouts):
            yield Setting(threads, layout, precision, runtime)


_MOST_SECONDS = 3600


def _check_numbers(option: str, values: Sequence[int], most: int | None) -> None:
    bound = "" if most is None else f" to {most}, the cores of this machine"
    wrong = [v for v in values if v < 1 or (most is not None and v > most)]
    if wrong:
        raise BenchError(f"{option}: found {wrong[0]}, expected whole numbers from 1{bound or ' on'}.")
    _check_once(option, values)


def _check_names(option: str, values: Sequence[str], known: Collection[str]) -> None:
    for value in values:
        if value not in known:
            near = nearest(value, known, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise BenchError(f"{option}: found {value!r}, expected some of {', '.join(known)}.{hint}")
    _check_once(option, values)


def _check_once(option: str, values: Sequence[object]) -> None:
    if not values:
        raise BenchError(f"{option}: found nothing, expected values separated by commas.")
    twice = [v for v in values if values.count(v) > 1]
    if twice:
        raise BenchError(f"{option}: found {twice[0]} twice, expected each value once.")
