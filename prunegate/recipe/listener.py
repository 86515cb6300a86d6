"""What a run tells those who watch it, and what it came to."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prunegate.report import Comparison, RunStart

logger = logging.getLogger(__name__)


class Listener(Protocol):
    """Who wants to see a run go by."""

    def run_started(self, start: RunStart) -> None: ...
    def stage_started(self, stage: str, epochs: int) -> None: ...
    def step_ended(self, epochs_done: float, loss: float | None, samples: int) -> None: ...
    def epoch_ended(self, record: Mapping[str, Any], dense_macs: int) -> None: ...
    def note(self, text: str) -> None: ...
    def finished(self, comparison: Comparison, certificate: Mapping[str, Any], folder: str) -> None: ...


class Listeners:
    """Tells several what it hears."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._all = list(listeners)

    def extend(self, listeners: Sequence[Listener]) -> None:
        self._all += listeners

    def run_started(self, start: RunStart) -> None:
        """All has been checked; training begins, or goes on."""
        for each in self._all:
            each.run_started(start)

    def stage_started(self, stage: str, epochs: int) -> None:
        """A stage begins, or goes on."""
        for each in self._all:
            each.stage_started(stage, epochs)

    def step_ended(self, epochs_done: float, loss: float | None, samples: int) -> None:
        """A step has ended.

        Args:
            epochs_done: Of the stage, with the part of the present one.
            loss: The newest loss that is known without waiting for the device.
            samples: Of this step, over all processes.
        """
        for each in self._all:
            each.step_ended(epochs_done, loss, samples)

    def epoch_ended(self, record: Mapping[str, Any], dense_macs: int) -> None:
        for each in self._all:
            each.epoch_ended(record, dense_macs)

    def note(self, text: str) -> None:
        for each in self._all:
            each.note(text)

    def finished(self, comparison: Comparison, certificate: Mapping[str, Any], folder: str) -> None:
        for each in self._all:
            each.finished(comparison, certificate, folder)


class Logger:
    """Tells the log what a run notes, where nobody else listens."""

    def run_started(self, start: RunStart) -> None:
        for what, text in start.facts:
            logger.info("%s: %s", what, text)

    def stage_started(self, stage: str, epochs: int) -> None: ...
    def step_ended(self, epochs_done: float, loss: float | None, samples: int) -> None: ...
    def epoch_ended(self, record: Mapping[str, Any], dense_macs: int) -> None: ...

    def note(self, text: str) -> None:
        logger.info(text)

    def finished(self, comparison: Comparison, certificate: Mapping[str, Any], folder: str) -> None: ...


@dataclass(frozen=True)
class RunSummary:
    """What a run came to."""

    folder: Path
    comparison: Comparison
    accuracy_after_hardening: float
    realised_macs: int
    dense_macs: int
