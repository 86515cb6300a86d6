"""One figure for a run: curves, and the units kept in each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunegate.files import replacing
from prunegate.report.metric import ACCURACY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {"dense": "#dbe4ee", "gate": "#f7e3c8", "finetune": "#dcecd9"}
_BLUE, _RED, _GREY, _GREEN = "#1f5a93", "#b3432b", "#8a8f98", "#3d7a3d"


@dataclass(frozen=True)
class KeptLayer:
    """Units of one channel group: how many there were and how many are kept."""

    name: str
    kept: int
    total: int


def draw_report(
    path: Path,
    title: str,
    records: Sequence[Mapping[str, Any]],
    layers: Sequence[KeptLayer],
    dense_macs: int,
    loss_name: str = "",
    metric: str = ACCURACY,
) -> None:
    """Write a PNG: loss, accuracy, tau and costs over epochs, and kept channels per channel group.

    Args:
        records: Lines of ``metrics.jsonl``, in order.
        dense_macs: Costs are shown as fractions of this.
        loss_name: Name of the training loss for the curve's title; optional.
        metric: Name of the figure in the records' ``accuracy``.
    """
    _write(report_figure(title, records, layers, dense_macs, loss_name, metric), path)


def report_figure(
    title: str,
    records: Sequence[Mapping[str, Any]],
    layers: Sequence[KeptLayer],
    dense_macs: int,
    loss_name: str = "",
    metric: str = ACCURACY,
) -> Figure:
    """The figure that `draw_report` writes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = max(1.6, 0.19 * len(layers) + 0.9)
    figure = Figure(figsize=(11, 6.4 + rows), layout="constrained")
    FigureCanvasAgg(figure)  # its own canvas, so that pyplot's process-wide state is not touched
    grid = figure.add_gridspec(3, 2, height_ratios=[2.6, 2.6, rows])
    figure.suptitle(title, fontsize=13, fontweight="bold")
    epochs = list(range(1, len(records) + 1))

    loss = figure.add_subplot(grid[0, 0])
    losses = [r["loss"] for r in records]
    loss.plot(epochs, losses, color=_BLUE, marker=".", markersize=4)
    named = f" ({loss_name})" if loss_name else ""
    loss.set(title=f"training loss{named}".replace("$", r"\$"))
    if losses and min(losses) > 0:
        loss.set_yscale("log")

    accuracy = figure.add_subplot(grid[0, 1])
    measured = [r.get("accuracy") for r in records]
    scale, unit = (100, " (%)") if metric == ACCURACY else (1, "")
    _curve(accuracy, epochs, [None if a is None else scale * a for a in measured], _BLUE, metric)
    accuracy.set(title=f"test {metric}, hard masks{unit}".replace("$", r"\$"))

    tau = figure.add_subplot(grid[1, 0])
    _curve(tau, epochs, [r.get("tau") for r in records], _RED, "tau")
    tau.set(title="tau while gates are trained", yscale="log", xlabel="epoch")
    tau.set_yticks([0.1, 0.3, 1, 3], ["0.1", "0.3", "1", "3"])
    tau.minorticks_off()

    cost = figure.add_subplot(grid[1, 1])
    for key, label, colour, style in (
        ("target_macs", "target", _GREY, "--"),
        ("expected_macs", "expected", _RED, "-"),
        ("realised_macs", "realised", _BLUE, "-"),
    ):
        values = [None if r.get(key) is None else float(r[key]) / dense_macs for r in records]
        _curve(cost, epochs, values, colour, label, style)
    cost.set(title="MACs as a fraction of the dense model's", xlabel="epoch", ylim=(0, 1.05))
    if cost.get_lines():
        cost.legend(frameon=False, loc="lower left")

    for axes in (loss, accuracy, tau, cost):
        _shade_stages(axes, records)
        axes.set_xlim(0.5, len(records) + 0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    _label_stages(loss, records)

    bars = figure.add_subplot(grid[2, :])
    places = list(range(len(layers)))
    bars.barh(places, [layer.total for layer in layers], color="#e3e6ea", label="removed")
    bars.barh(places, [layer.kept for layer in layers], color=_GREEN, label="kept")
    bars.set_yticks(places, [layer.name for layer in layers], fontsize=8)
    bars.invert_yaxis()
    bars.set(title="channels kept in each channel group", xlabel="units")
    for place, layer in enumerate(layers):
        bars.annotate(f"{layer.kept}/{layer.total}", (layer.total, place), xytext=(4, 0),
                      textcoords="offset points", va="center", fontsize=7)  # fmt: skip
    bars.margins(x=0.06, y=0.01)
    bars.spines[["top", "right"]].set_visible(False)
    bars.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2)
    return figure


def _write(figure: Figure, path: Path) -> None:
    """Write the figure atomically, with the usual permissions of new files."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _curve(axes: Any, epochs: list[int], values: list[float | None], colour: str, label: str, style: str = "-") -> None:
    known = [(e, v) for e, v in zip(epochs, values, strict=True) if v is not None]
    if known:
        axes.plot(*zip(*known, strict=True), color=colour, linestyle=style, marker=".", markersize=4, label=label)


def _spans(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """The stages with their first and last positions on the epoch axis."""
    spans: list[tuple[str, float, float]] = []
    for number, record in enumerate(records, start=1):
        if spans and spans[-1][0] == record["stage"]:
            spans[-1] = (spans[-1][0], spans[-1][1], number + 0.5)
        else:
            spans.append((record["stage"], number - 0.5, number + 0.5))
    return spans


def _shade_stages(axes: Any, records: Sequence[Mapping[str, Any]]) -> None:
    for stage, start, end in _spans(records):
        axes.axvspan(start, end, color=_COLOURS.get(stage, "#eeeeee"), alpha=0.6, zorder=0, linewidth=0)


def _label_stages(axes: Any, records: Sequence[Mapping[str, Any]]) -> None:
    for stage, start, end in _spans(records):
        axes.annotate(stage, ((start + end) / 2, 0.97), xycoords=("data", "axes fraction"), ha="center", va="top",
                      fontsize=9, color="#444444")  # fmt: skip
