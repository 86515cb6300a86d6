"""Measuring time and memory of calls on the machine at hand."""

from __future__ import annotations

from prunegate.measuring.timer import STEADY_SPREAD, Timing, time_in_turn

__all__ = ["STEADY_SPREAD", "Timing", "time_in_turn"]
