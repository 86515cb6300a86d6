"""A benchmark as tables for a terminal of 60 columns and more."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from prunegate.bench.advice import Advice, ms_text, setting_text, varying
from prunegate.bench.measure import Bench, Row
from prunegate.measuring import STEADY_SPREAD

_NOISE = f"~ noisy: the interquartile range is more than {STEADY_SPREAD:.0%} of the median."
_MEMORY = (
    "act.: activations, the most bytes of tensors alive at once in one call, besides weights and inputs; {}. MACs are "
    "per sample."
)
_COUNTED = {
    "cpu": "counted by operation, without the kernels' scratch memory",
    "cuda": "the allocator's peak, with the kernels' scratch memory",
}


def bench_tables(bench: Bench, advice: Advice) -> Iterator[RenderableType]:
    """What is printed, in order: the setting, times for each batch size, reasons, memory, remarks, advice."""
    yield Text(_head(bench))
    reasons: list[str] = []
    for batch_size in bench.settings.batch_sizes:
        yield Text()
        yield _times(bench, batch_size, reasons)
    yield from (Text(f"({number}) {reason}") for number, reason in enumerate(reasons, 1))
    if any(row.timing is not None and not row.timing.is_steady for row in bench.rows):
        yield Text(_NOISE)
    yield Text()
    yield _memory(bench)
    yield Text(_MEMORY.format(_COUNTED[bench.settings.device]))
    yield from map(Text, bench.notes)
    yield Text()
    yield from (Text(line, style="bold") for line in advice.lines)


def _head(bench: Bench) -> str:
    """The machine, the inputs, and what is the same in all rows."""
    settings = bench.settings
    first = next(settings.settings(settings.threads[0]))
    same = [part for part, varies in zip(first.parts, varying(bench), strict=True) if not varies]
    return f"{bench.machine['device']}; inputs {bench.inputs}; {', '.join(same)}".rstrip("; ")


def _times(bench: Bench, batch_size: int, reasons: list[str]) -> Table:
    """One batch size; the reasons of rows that were not run are added to ``reasons``, which numbers them."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(f"batch {batch_size}", overflow="fold")
    for column in ("ms (IQR)", "samples/s", "× dense"):
        table.add_column(column, justify="right", no_wrap=True)
    rows = bench.at(batch_size)
    fastest = min((r for r in rows if r.timing), key=lambda r: r.timing.median_ms if r.timing else 0.0, default=None)
    for setting, together in groupby(rows, key=lambda row: setting_text(bench, row)):
        own = list(together)
        if setting and all(row.timing is None and row.reason == own[0].reason for row in own):
            table.add_row(Text(setting, style="italic"), *_cells(bench, own[0], reasons))
            continue
        if setting:
            table.add_row(Text(setting, style="italic"))
        for row in own:
            name = Text(f"{'  ' if setting else ''}{row.model}")
            table.add_row(name, *_cells(bench, row, reasons), style="bold" if row is fastest else None)
    return table


def _cells(bench: Bench, row: Row, reasons: list[str]) -> tuple[str, str, str]:
    timing, speedup = row.timing, bench.speedup(row)
    if timing is None:
        reason = row.reason or "unknown"
        if reason not in reasons:
            reasons.append(reason)
        return f"not run ({reasons.index(reason) + 1})", "", ""
    mark = "" if timing.is_steady else "~"
    rate = row.samples_per_second or 0.0
    return (
        f"{mark}{ms_text(timing.median_ms)} ({ms_text(timing.spread_ms, timing.median_ms)})",
        f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}",
        "" if speedup is None else f"{speedup:.2f}",
    )


def _memory(bench: Bench) -> Table:
    """Weights and activations of each model in each precision, run eagerly if that was measured."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("memory in MB", overflow="fold")
    for column in ("MACs", "weights", *(f"act. b{size}" for size in bench.settings.batch_sizes)):
        table.add_column(column, justify="right", no_wrap=True)
    for precision in bench.settings.precisions:
        for model in bench.models:
            own = [r for r in bench.rows if r.model == model.name and r.setting.precision == precision]
            weights = next((r.weight_bytes for r in own if r.weight_bytes is not None), None)
            activations = (
                next((r.activation_bytes for r in own if r.batch_size == s and r.activation_bytes is not None), None)
                for s in bench.settings.batch_sizes
            )
            name = f"{model.name}, {precision}" if len(bench.settings.precisions) > 1 else model.name
            macs = "–" if model.macs is None else _count(model.macs)
            table.add_row(Text(name), macs, _megabytes(weights), *map(_megabytes, activations))
    return table


def _megabytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 1e6:,.1f}" if size >= 1e6 else f"{size / 1e6:.3f}"


def _count(number: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
