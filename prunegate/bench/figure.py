"""A benchmark as one figure: a dot with its interquartile range for each row."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from prunegate.bench.advice import setting_text
from prunegate.bench.measure import Bench
from prunegate.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by their form, by their colour for all kinds of colour vision, and in print by their lightness.
_LOOKS = (
    ("o", "#000000"),
    ("s", "#0072b2"),
    ("^", "#d55e00"),
    ("D", "#56b4e9"),
    ("v", "#cc79a7"),
    ("P", "#009e73"),
    ("X", "#e69f00"),
)


def draw_bench(path: Path, bench: Bench) -> None:
    """Write the figure as a PNG."""
    figure = bench_figure(bench)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def bench_figure(bench: Bench) -> Figure:
    """A panel for each batch size: settings and models by line, latency from left to right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    sizes = bench.settings.batch_sizes
    lines = len(bench.at(sizes[0]))
    settings = len({setting_text(bench, row) for row in bench.at(sizes[0])})
    height = 0.9 + len(sizes) * (0.9 + 0.26 * lines + 0.2 * settings)
    figure = Figure(figsize=(8, height + 0.25 * len(bench.models)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)  # so that pyplot's process-wide state is not touched
    figure.suptitle(f"{bench.machine['device']}, inputs {bench.inputs}".replace("$", r"\$"), fontsize=11)
    panels = figure.subplots(len(sizes), 1, squeeze=False)[:, 0]
    for axes, batch_size in zip(panels, sizes, strict=True):
        _panel(axes, bench, batch_size)
    panels[-1].set_xlabel("ms per call: median and interquartile range; hollow: noisy")
    handles = [
        Line2D([], [], linestyle="", marker=marker, color=colour, markersize=7, label=model.name.replace("$", r"\$"))
        for model, (marker, colour) in zip(bench.models, cycle(_LOOKS), strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=1, frameon=False, fontsize=9)
    return figure


def _panel(axes: Axes, bench: Bench, batch_size: int) -> None:
    looks = {model.name: look for model, look in zip(bench.models, cycle(_LOOKS), strict=False)}
    place, heading, ticks = 0.0, None, []
    rows = bench.at(batch_size)
    for row in rows:
        setting = setting_text(bench, row)
        if setting != heading:
            heading = setting
            place += 0.8
            ticks.append((place, setting))
        marker, colour = looks[row.model]
        if row.timing is None:
            axes.annotate("  not run", (0, place), va="center", fontsize=8, color="#555555")
        else:
            timing = row.timing
            spread = [[timing.median_ms - timing.low_ms], [timing.high_ms - timing.median_ms]]
            axes.errorbar(
                timing.median_ms, place, xerr=spread, fmt=marker, color=colour, capsize=3, markersize=7,
                markerfacecolor=colour if timing.is_steady else "none",
            )  # fmt: skip
            axes.annotate(f"{timing.median_ms:.3g}", (timing.high_ms, place), xytext=(9, 0),
                          textcoords="offset points", va="center", fontsize=8)  # fmt: skip
        place += 1
    axes.set_yticks([tick for tick, _ in ticks], [text.replace("$", r"\$") for _, text in ticks], fontsize=9)
    axes.set_ylim(place - 0.2, -0.2)  # the first row on top
    axes.set_xlim(left=0)
    axes.margins(x=0.12)
    axes.set_title(f"batch {batch_size}", loc="left", fontsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)
