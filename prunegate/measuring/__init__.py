"""Measuring time and memory of calls on the machine at hand."""

from __future__ import annotations

from prunegate.measuring.memory import peak_activation_bytes, weight_bytes
from prunegate.measuring.timer import STEADY_SPREAD, Timing, time_in_turn

__all__ = ["STEADY_SPREAD", "Timing", "peak_activation_bytes", "time_in_turn", "weight_bytes"]
