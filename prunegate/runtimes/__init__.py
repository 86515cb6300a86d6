"""Models ready to be timed in a runtime: eager, compiled, with folded norms, or in ONNX Runtime."""

from __future__ import annotations

from prunegate.runtimes.inputs import converted, described, have_layout, of_batch
from prunegate.runtimes.preparing import Prepared, Preparer
from prunegate.runtimes.setting import LAYOUTS, PRECISIONS, RUNTIMES, Setting

__all__ = [
    "LAYOUTS",
    "PRECISIONS",
    "RUNTIMES",
    "Prepared",
    "Preparer",
    "Setting",
    "converted",
    "described",
    "have_layout",
    "of_batch",
]
