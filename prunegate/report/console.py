"""Live progress of a run on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from prunegate.report.comparison import Comparison
from prunegate.report.metric import ACCURACY, metric_text

# Narrower terminals get figures only: what a line cannot hold would be cut off.
_ROOM_FOR_A_BAR = 130


class ConsoleListener:
    """Shows stages and epochs as they come, and the result at the end."""

    def __init__(self, console: Console | None = None, metric: str = ACCURACY) -> None:
        self.console = console or Console()
        self._metric = metric
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def stage_started(self, stage: str, epochs: int) -> None:
        self._stop()
        if self.console.is_terminal and epochs:
            name = TextColumn("[bold]{task.description}")
            figures = TextColumn("{task.fields[figures]}")
            columns: list[ProgressColumn] = [name, MofNCompleteColumn(), figures]
            if self._wide:
                columns = [name, BarColumn(bar_width=24), MofNCompleteColumn(), figures, TimeElapsedColumn()]
            self._progress = Progress(*columns, console=self.console)
            self._progress.start()
            self._task = self._progress.add_task(stage, total=epochs, figures="")

    def step_ended(self, epochs_done: float) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=epochs_done)

    def epoch_ended(self, record: Mapping[str, Any], dense_macs: int) -> None:
        if self._progress is not None and self._task is not None:
            figures = _figures(record, dense_macs, self._metric, with_loss=self._wide)
            self._progress.update(self._task, completed=record["epoch"], figures=figures)
        else:
            self._line(f"{record['stage']:9} epoch {record['epoch']:3}  {_figures(record, dense_macs, self._metric)}")

    def note(self, text: str) -> None:
        self._stop()
        self._line(text)

    def finished(self, comparison: Comparison, certificate: Mapping[str, Any], folder: str) -> None:
        self._stop()
        self.console.print(comparison.table())
        for precision in ("float64", "float32"):
            found = certificate[precision]
            if found is None or found["max_rel"] is None:
                continue  # the model does not run in this precision; `limits` say so
            self._line(
                f"certificate, {precision}: largest difference to the gated model {found['max_abs']:.1e}, "
                f"relative {found['max_rel']:.1e}"
            )
        self._line(f"everything is in {folder}/ (look at report.png)")

    @property
    def _wide(self) -> bool:
        return self.console.width >= _ROOM_FOR_A_BAR

    def _line(self, text: str) -> None:
        """One line as it is: not wrapped (a log is searched by line), square brackets no markup."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None

    def close(self) -> None:
        """Give the terminal back, also after an error."""
        self._stop()


def _figures(record: Mapping[str, Any], dense_macs: int, metric: str, with_loss: bool = True) -> str:
    text = f"loss {record['loss']:.4f}  " if with_loss else ""
    text += f"{metric} {metric_text(record['accuracy'], metric)}"
    if record.get("tau") is not None:
        text += (
            f"  tau {record['tau']:.2f}  MACs expected {record['expected_macs'] / dense_macs:.3f}"
            f" realised {record['realised_macs'] / dense_macs:.3f} of dense"
        )
    return text
