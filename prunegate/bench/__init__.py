"""Benchmarks: dense and compact models side by side on the machine at hand."""

from __future__ import annotations

from prunegate.bench.advice import Advice, advise
from prunegate.bench.figure import draw_bench
from prunegate.bench.measure import Bench, Row, run_bench
from prunegate.bench.models import Contender, Gathering
from prunegate.bench.settings import BenchSettings
from prunegate.bench.table import bench_tables

__all__ = [
    "Advice",
    "Bench",
    "BenchSettings",
    "Contender",
    "Gathering",
    "Row",
    "advise",
    "bench_tables",
    "draw_bench",
    "run_bench",
]
