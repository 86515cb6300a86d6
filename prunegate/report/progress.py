"""Progress of a run: speed, loss, and time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

# Steps after which the speed of the current epoch is used.
_STEPS_TO_MEASURE = 5


class Progress:
    """Follows the steps of one stage.

    The time left is estimated for the remaining epochs, of this and later stages, from this stage's epochs so far,
    including their tests. The speed is that of training alone.

    Args:
        stage: Its name.
        epochs: Epochs of this stage.
        later: Epochs of the later stages.
        clock: Returns seconds since an arbitrary point in time.

    Attributes:
        epochs_done: Epochs done, including the fraction of the current one.
        loss: Mean over the current epoch's steps so far; None before it is known.
        samples_per_second: None before it is known.
        seconds: Time from the start or resumption of the stage until the end of the last epoch's test.
    """

    def __init__(self, stage: str, epochs: int, later: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.stage, self.epochs, self._later, self._clock = stage, epochs, later, clock
        self.began = clock()
        self.seconds = 0.0
        self.epochs_done = 0.0
        self.loss: float | None = None
        self.samples_per_second: float | None = None
        self._first: tuple[float, float] | None = None
        self._loss_sum, self._losses = 0.0, 0
        self._epoch_began: float | None = None
        self._samples = self._steps = 0

    def step(self, epochs_done: float, loss: float | None, samples: int) -> None:
        """Record a step: the epochs done, the step's loss if it is known, and its number of samples."""
        now = self._clock()
        self.epochs_done = epochs_done
        if self._first is None:
            self._first = (now, epochs_done)
        if loss is not None:
            self._loss_sum += loss
            self._losses += 1
            self.loss = self._loss_sum / self._losses
        if self._epoch_began is None:  # the time before may have been spent on a test
            self._epoch_began = now
            return
        self._samples += samples
        self._steps += 1
        passed = now - self._epoch_began
        if passed > 0 and (self._steps >= _STEPS_TO_MEASURE or self.samples_per_second is None):
            self.samples_per_second = self._samples / passed

    def epoch(self, number: int, loss: float) -> None:
        """Record that an epoch has ended and been tested."""
        self.epochs_done, self.loss = float(number), loss
        self._loss_sum, self._losses = 0.0, 0
        self._epoch_began, self._samples, self._steps = None, 0, 0
        self.seconds = self._clock() - self.began

    @property
    def seconds_left(self) -> float | None:
        """Time until the end of training; None before there is a measurement."""
        if self._first is None or self.epochs_done <= self._first[1]:
            return None
        pace = (self._clock() - self._first[0]) / (self.epochs_done - self._first[1])
        return pace * (self.epochs - self.epochs_done + self._later)


def later_epochs(stages: Sequence[tuple[str, int]]) -> int:
    """The epochs of some stages."""
    return sum(epochs for _, epochs in stages)


def duration(seconds: float) -> str:
    """``0:42``, ``12:05``, ``3:04:05``, or ``2 d 3 h``."""
    whole = round(seconds)
    if whole >= 86_400:
        return f"{whole // 86_400} d {whole % 86_400 // 3600} h"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
