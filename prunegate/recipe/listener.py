"""Events of a run for its listeners, and its summary."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prunegate.report import Comparison, RunStart

logger = logging.getLogger(__name__)


class Listener(Protocol):
    """Receives the events of a run."""

    def run_started(self, start: RunStart) -> None: ...
    def stage_started(self, stage: str, epochs: int) -> None: ...
    def step_ended(self, epochs_done: float, loss: float | None, samples: int) -> None: ...
    def epoch_ended(self, record: Mapping[str, Any], dense_macs: int) -> None: ...
    def note(self, text: str) -> None: ...
    def finished(self, comparison: Comparison, certificate: Mapping[str, Any], folder: str) -> None: ...


class Listeners:
    """Forwards events to several listeners."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._all = list(listeners)

    def extend(self, listeners: Sequence[Listener]) -> None:
        self._all += listeners

    def run_started(self, start: RunStart) -> None:
        """All checks have passed; training starts or resumes."""
        for each in self._all:
            each.run_started(start)

    def stage_started(self, stage: str, epochs: int) -> None:
        """A stage starts or resumes."""
        for each in self._all:
            each.stage_started(stage, epochs)

    def step_ended(self, epochs_done: float, loss: float | None, samples: int) -> None:
        """A step has ended.

        Args:
            epochs_done: Epochs of the stage, including the fraction of the current one.
            loss: The newest loss known without synchronising with the device.
            samples: Samples of this step, over all processes.
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
    """Writes a run's notes to the log, if there is no other listener."""

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
    """The result of a run."""

    folder: Path
    comparison: Comparison
    accuracy_after_hardening: float
    realised_macs: int
    dense_macs: int
