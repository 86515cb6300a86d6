"""Latency as a cost: measured on the machine at hand, predicted for any mask."""

from __future__ import annotations

from prunegate.latency.latency import Latency, Measured
from prunegate.latency.measure import measure_latency
from prunegate.latency.settings import LatencySettings
from prunegate.latency.subnetworks import random_subnetwork

__all__ = ["Latency", "LatencySettings", "Measured", "measure_latency", "random_subnetwork"]
