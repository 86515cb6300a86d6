"""Latency as a cost: measured on the machine at hand, predicted for any mask."""

from __future__ import annotations

from prunegate.latency.latency import Latency, Measured, measure_latency, random_subnetwork
from prunegate.latency.settings import LatencySettings

__all__ = ["Latency", "LatencySettings", "Measured", "measure_latency", "random_subnetwork"]
