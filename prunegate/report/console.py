"""Live progress of a run on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from prunegate.report.comparison import Comparison
from prunegate.report.live_line import live_line, speed_text
from prunegate.report.metric import ACCURACY, metric_text
from prunegate.report.progress import Progress, duration, later_epochs
from prunegate.report.run_start import RunStart

# Longest time without a line in a log, in seconds.
_LONGEST_SILENCE = 30.0


class ConsoleListener:
    """Shows a run's header, its stages and epochs, and the result at the end.

    On a terminal there is one live line at the bottom; other output to the terminal or to ``sys.stderr`` appears above
    it. Otherwise there is a line per epoch, and at least one every 30 seconds.

    Args:
        console: By default one on ``sys.stdout``.
        metric: Name of the figure in the records' ``accuracy``.
        silence: Seconds after which a log gets another line.
        clock: Returns seconds since an arbitrary point in time.
    """

    def __init__(
        self,
        console: Console | None = None,
        metric: str = ACCURACY,
        silence: float = _LONGEST_SILENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or Console()
        self._is_live = self.console.is_terminal and not self.console.is_dumb_terminal
        self._metric, self._silence, self._clock = metric, silence, clock
        self._stages: list[tuple[str, int]] = []
        self._progress: Progress | None = None
        self._record: Mapping[str, Any] | None = None
        self._dense_macs = 1
        self._live: Live | None = None
        self._beat: threading.Thread | None = None
        self._closed = threading.Event()
        self._last_line = clock()

    def run_started(self, start: RunStart) -> None:
        self._stages = list(start.stages)
        if self._is_live:
            head = Table.grid(padding=(0, 2))
            for what, text in start.facts:
                head.add_row(Text(what, style="bold"), Text(text))
            self.console.print(Text(start.name, style="bold"), head)
        else:
            self._line(start.name)
            for what, text in start.facts:
                self._line(f"  {what:8} {text}")

    def stage_started(self, stage: str, epochs: int) -> None:
        self._end_stage()
        if not epochs:
            return
        names = [name for name, _ in self._stages]
        if stage in names:  # skip the stages that a resumed run has finished
            del self._stages[: names.index(stage) + 1]
        self._progress = Progress(stage, epochs, later_epochs(self._stages), self._clock)
        if not self._is_live:
            self._begin_to_beat()
        elif self._live is None:
            # If the log is redirected, for example with 2> file, leave it there.
            redirect = sys.stderr.isatty() or self.console.file is not sys.stdout
            self._live = Live(console=self.console, get_renderable=self._now, transient=True, redirect_stderr=redirect)
            self._live.start()

    def step_ended(self, epochs_done: float, loss: float | None, samples: int) -> None:
        if self._progress is not None:
            self._progress.step(epochs_done, loss, samples)

    def epoch_ended(self, record: Mapping[str, Any], dense_macs: int) -> None:
        if self._progress is None:
            return
        self._progress.epoch(record["epoch"], record["loss"])
        self._record, self._dense_macs = record, dense_macs
        if not self._is_live:
            figures = _figures(record, dense_macs, self._metric)
            self._line(f"{record['stage']:9} epoch {record['epoch']:3}  {figures}{speed_text(self._progress)}")

    def note(self, text: str) -> None:
        self._end_stage()
        self._line(text)

    def finished(self, comparison: Comparison, certificate: Mapping[str, Any], folder: str) -> None:
        self.close()
        self.console.print(comparison.table())
        for precision in ("float64", "float32"):
            result = certificate[precision]
            if result is None or result["max_rel"] is None:
                continue  # the model does not run in this precision; see `limits`
            self._line(
                f"certificate, {precision}: largest difference from the gated model {result['max_abs']:.1e}, "
                f"relative {result['max_rel']:.1e}"
            )
        self._line(f"results are in {folder}/ (see report.png)")

    def close(self) -> None:
        """Release the terminal, also after an error."""
        self._end_stage()
        self._closed.set()
        if self._live is not None:
            self._live.stop()
            self._live = None

    # ---------------------------------------------------------------------------------------------

    def _now(self) -> Text:
        if self._progress is None:
            return Text()
        width = self.console.width - 1  # a full last column makes some terminals wrap
        line = live_line(self._progress, width, self._record, self._dense_macs, self._metric)
        return Text(line, no_wrap=True, overflow="crop")

    def _end_stage(self) -> None:
        """On a terminal, print the stage's last figures when the live line ends; a log already has them."""
        progress, record = self._progress, self._record
        self._progress = self._record = None
        if progress is not None and record is not None and self._is_live:
            done = f"{progress.stage:9} {record['epoch']}/{progress.epochs} epochs in {duration(progress.seconds)}"
            self._line(f"{done}  {_figures(record, self._dense_macs, self._metric)}")

    def _line(self, text: str) -> None:
        """Print one line verbatim: without markup in square brackets, and unwrapped, as logs are searched by line."""
        self._last_line = self._clock()
        self.console.print(text, highlight=False, markup=False, soft_wrap=not self._is_live)

    def _begin_to_beat(self) -> None:
        if self._beat is None:
            self._beat = threading.Thread(target=self._beat_until_closed, daemon=True, name="prunegate-progress")
            self._beat.start()

    def _beat_until_closed(self) -> None:
        """Show that the run is alive, also while it tests, compacts or waits for data."""
        while not self._closed.wait(max(0.05, min(1.0, self._silence / 4))):
            if self._clock() - self._last_line < self._silence - 1.0:
                continue
            progress = self._progress
            if progress is None or progress.epochs_done >= progress.epochs:  # between stages, or at the end
                self._line("still running")
                continue
            loss = "" if progress.loss is None else f"  loss {progress.loss:.4f}"
            number = min(progress.epochs, int(progress.epochs_done) + 1)
            part = f"{progress.epochs_done - int(progress.epochs_done):.0%} of it"
            self._line(f"{progress.stage:9} epoch {number:3}, {part}{loss}{speed_text(progress)}")


def _figures(record: Mapping[str, Any], dense_macs: int, metric: str) -> str:
    text = f"loss {record['loss']:.4f}  {metric} {metric_text(record['accuracy'], metric)}"
    if record.get("tau") is not None:
        text += f"  tau {record['tau']:.2f}"
        if record.get("expected_latency_ms") is not None:
            expected, realised = record["expected_latency_ms"], record["realised_latency_ms"]
            text += f"  latency expected {expected:.3g} realised {realised:.3g} ms"
        text += (
            f"  MACs expected {record['expected_macs'] / dense_macs:.3f}"
            f" realised {record['realised_macs'] / dense_macs:.3f} of dense"
        )
    return text
