"""Reports of a run: measured comparison, curves, and live progress."""

from __future__ import annotations

from prunegate.report.comparison import Comparison, ModelFigures, counted_macs
from prunegate.report.curves import KeptLayer, draw_report
from prunegate.report.latency import Latency, measure_latency
from prunegate.report.metric import metric_name, metric_text
from prunegate.report.own_loop import Recorder
from prunegate.report.run_start import RunStart

__all__ = [
    "Comparison",
    "KeptLayer",
    "Latency",
    "ModelFigures",
    "Recorder",
    "RunStart",
    "counted_macs",
    "draw_report",
    "measure_latency",
    "metric_name",
    "metric_text",
]
