"""Trackers: listeners that write metrics for other programs."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunegate.errors import RecipeError
from prunegate.files import replacing
from prunegate.report import Comparison, RunStart
from prunegate.training import EpochRecord

CSV = "metrics.csv"
TENSORBOARD = "tensorboard"


class _Tracker:
    """Receives epochs; `write` gets the number of the epoch over all stages, from 1, and its record."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def write(self, epoch: int, record: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def run_started(self, start: RunStart) -> None: ...
    def stage_started(self, stage: str, epochs: int) -> None: ...
    def step_ended(self, epochs_done: float, loss: float | None, samples: int) -> None: ...
    def note(self, text: str) -> None: ...
    def finished(self, comparison: Comparison, certificate: Mapping[str, Any], folder: str) -> None: ...

    def epoch_ended(self, record: Mapping[str, Any], dense_macs: int) -> None:
        self.epochs += 1
        self.write(self.epochs, record)


class CsvTracker(_Tracker):
    """``metrics.csv``: a line per epoch, with empty fields for figures that a stage does not have."""

    def __init__(self, folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
        self._path, self._text = folder / CSV, io.StringIO()
        self._writer = csv.DictWriter(self._text, list(EpochRecord.__dataclass_fields__))
        self._writer.writeheader()
        self._writer.writerows(records)
        super().__init__(len(records))
        if records:
            self._save()

    def write(self, epoch: int, record: Mapping[str, Any]) -> None:
        self._writer.writerow(record)
        self._save()

    def _save(self) -> None:
        with replacing(self._path) as temporary:
            temporary.write_text(self._text.getvalue(), encoding="utf-8")


class TensorBoardTracker(_Tracker):
    """Event files in ``tensorboard/``; on resuming, TensorBoard purges the figures of later epochs."""

    def __init__(self, folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / TENSORBOARD), purge_step=len(records) + 1 if records else None)
        super().__init__(len(records))

    def write(self, epoch: int, record: Mapping[str, Any]) -> None:
        for name, value in record.items():
            if isinstance(value, (int, float)) and name not in ("epoch", "step"):
                self._writer.add_scalar(f"{record['stage']}/{name}", value, epoch)
        self._writer.flush()


def check_trackers(names: Sequence[str]) -> None:
    """Check that the packages they need are installed.

    Raises:
        RecipeError: A package is missing.
    """
    if "tensorboard" in names and importlib.util.find_spec("tensorboard") is None:
        raise RecipeError(
            "trackers: tensorboard needs the package tensorboard, which is not installed. "
            "Run: pip install 'prunegate[tensorboard]'."
        )


def trackers_of(names: Sequence[str], folder: Path, records: Sequence[Mapping[str, Any]]) -> list[_Tracker]:
    """The trackers that a recipe names; ``records`` are those of the epochs before resuming."""
    made: dict[str, Any] = {"csv": CsvTracker, "tensorboard": TensorBoardTracker}
    return [made[name](folder, records) for name in names]
