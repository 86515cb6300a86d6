"""One line of progress, fitted to the width of the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunegate.report.metric import metric_text
from prunegate.report.progress import Progress, duration

_GAP = "  "
_LEAST_BAR, _LARGEST_BAR = 6, 30


def live_line(
    progress: Progress, width: int, record: Mapping[str, Any] | None = None, dense_macs: int = 1, metric: str = ""
) -> str:
    """The line for a terminal of ``width`` columns; never longer than that.

    Stage, epochs, bar, loss and time left come first; speed, metric, tau and costs follow if there is room.

    Args:
        record: The record of the stage's last epoch, if any, with metric, tau and costs.
        dense_macs: Costs are shown as fractions of this.
        metric: Name of the figure in the record's ``accuracy``.
    """
    left, speed = progress.seconds_left, progress.samples_per_second
    head = f"{progress.stage} {int(progress.epochs_done)}/{progress.epochs}"
    loss = "loss ..." if progress.loss is None else f"loss {progress.loss:.4f}"
    ends = "left ..." if left is None else f"left {duration(left)}"
    speeds = ("", "") if speed is None else (f"{_speed(speed)}/s", f"{_speed(speed)} samples/s")
    extra = [] if record is None else _extra(record, dense_macs, metric)
    shown = [part for part in (loss, speeds[0], ends) if part]
    room = width - _LEAST_BAR - len(_GAP)
    if len(_joined([head, *shown])) > width:  # too narrow for anything but stage and epoch
        return _joined([head, ends])[:width]
    if speeds[1] and len(_joined([head, loss, speeds[1], ends])) <= room:
        shown = [loss, speeds[1], ends]
    for part in extra:
        if len(_joined([head, *shown, part])) > room:
            break
        shown.append(part)
    bar = min(_LARGEST_BAR, width - len(_joined([head, "", *shown])))
    return _joined([head, _bar(progress.epochs_done / max(1, progress.epochs), bar), *shown] if bar > 0 else
                   [head, *shown])  # fmt: skip


def speed_text(progress: Progress) -> str:
    """Speed and time left for a log line, if known."""
    left, speed = progress.seconds_left, progress.samples_per_second
    return (f"  {_speed(speed)} samples/s" if speed is not None else "") + (
        f"  left {duration(left)}" if left is not None else ""
    )


def _extra(record: Mapping[str, Any], dense_macs: int, metric: str) -> list[str]:
    told = [f"{metric} {metric_text(record['accuracy'], metric)}"] if record.get("accuracy") is not None else []
    if record.get("tau") is not None:
        expected, realised = record["expected_macs"] / dense_macs, record["realised_macs"] / dense_macs
        told += [f"tau {record['tau']:.2f}"]
        if record.get("expected_latency_ms") is not None:
            told += [f"{record['expected_latency_ms']:.3g} ms expected, {record['realised_latency_ms']:.3g} realised"]
        told += [f"MACs {expected:.3f} expected, {realised:.3f} realised"]
    return told


def _joined(parts: list[str]) -> str:
    return _GAP.join(parts)


def _bar(share: float, width: int) -> str:
    done = min(width, max(0, round(share * width)))
    return "━" * done + "─" * (width - done)


def _speed(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}"
