"""Live progress of a run on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from prunegate.report.comparison import Comparison


class ConsoleListener:
    """Shows stages and epochs as they come, and the result at the end."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def stage_started(self, stage: str, epochs: int) -> None:
        self._stop()
        if self.console.is_terminal and epochs:
            self._progress = Progress(
                TextColumn("[bold]{task.description:9}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeElapsedColumn(),
                console=self.console,
            )
            self._progress.start()
            self._task = self._progress.add_task(stage, total=epochs, figures="")

    def epoch_ended(self, record: Mapping[str, Any], dense_macs: int) -> None:
        figures = _figures(record, dense_macs)
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=1, figures=figures)
        else:
            self.console.print(f"{record['stage']:9} epoch {record['epoch']:3}  {figures}", highlight=False)

    def note(self, text: str) -> None:
        self._stop()
        self.console.print(text, highlight=False)

    def finished(self, comparison: Comparison, certificate: Mapping[str, Any], folder: str) -> None:
        self._stop()
        self.console.print(comparison.table())
        for precision in ("float64", "float32"):
            found = certificate[precision]
            self.console.print(
                f"certificate, {precision}: largest difference to the gated model {found['max_abs']:.1e}, "
                f"relative {found['max_rel']:.1e}",
                highlight=False,
            )
        self.console.print(f"everything is in {folder}/ (look at report.png)", highlight=False)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None

    def close(self) -> None:
        """Give the terminal back, also after an error."""
        self._stop()


def _figures(record: Mapping[str, Any], dense_macs: int) -> str:
    text = f"loss {record['loss']:.4f}  accuracy {record['accuracy']:.2%}"
    if record.get("tau") is not None:
        text += (
            f"  tau {record['tau']:.2f}  MACs expected {record['expected_macs'] / dense_macs:.3f}"
            f" realised {record['realised_macs'] / dense_macs:.3f} of dense"
        )
    return text
