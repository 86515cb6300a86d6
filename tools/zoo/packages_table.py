"""PACKAGES.md out of the results of the packages' models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median

from zoo.table import Row, read_rows, table_line

# What can be seen of a model, best first, with what that means.
STATUSES = {
    "exact": "without a limit on size or batch",
    "limited": "exact where it runs; it has a limit or refuses a size or batch that the dense model takes",
    "vacuous": "nothing could be compared, or rounding hides what would show",
    "refused": "by `wrap`, with a reason",
    "not delivered": "`wrap` accepted what `compact` refuses",
    "wrong": "another result somewhere",
    "crash": "an error that is not the library's own",
    "timeout": "",
}
_PLACES = ("traced", "batch", "size", "training", "training, size")
_INTRODUCTION = """# Models of twelve packages

Written by `python tools/zoo.py --packages` (the extra `zoo` pins the packages). Small configurations without downloads,
initial weights with noise, a process for each model, one thread, CPU. Each is wrapped in float32 with a batch of two;
half, a quarter and three quarters of the units of every group stay, at random; the gated and the compact model are
then compared in double precision (in single where the model runs in no other) on new samples (traced); with half of the
units also on a batch of three (batch), at another size or length (size), and in training mode with the gradients of
inputs and weights (training; there also on a batch of three at the other size). A model may take 240 s, Torch-Pruning
30 s of them.

- A figure is the largest relative difference, max|a−b| / max|a| of a tensor. (rounding): rounding alone moves the gated
  model as much. "—": the dense model does not run so, or takes one size alone.
- removed: share of the MACs that is gone with half of the units. TP: Torch-Pruning 1.6.1 in the same run on the same
  model, out of the box, at a ratio of 0.5 by magnitude, told which layers the outputs come from. ok: it runs, and
  returns outputs of the same shapes; shapes: of others; nothing: no MACs are gone.
- Which outputs count follows from their names ([counting.py](counting.py)): hidden states, caches, what is called
  intermediate, and all that a model inside returns do not, if others are left. Where some do not, the model is
  wrapped with `outputs=`, and only those that count are compared; Torch-Pruning is told the same. "removed, all
  outputs" is the share with every output preserved; it is empty where all of them count anyway. To say which outputs
  count does not make a model "limited", which is about sizes and batches.
"""
_HEAD = ("model", "params (M)", "groups", "units", "wrap (s)", "all (s)", "removed", "removed, all outputs",
         "TP removed", *_PLACES, "dtype", "class kept", "status", "pinned", "limits and remarks", "TP")  # fmt: skip


def write_packages(folder: Path, out: Path) -> None:
    """Write the table of results-packages.jsonl, if there is one."""
    rows = sorted(read_rows(folder / "results-packages.jsonl").values(), key=lambda row: str(row["model"]))
    if not rows:
        return
    lines = [_INTRODUCTION, *_summary(rows), "", table_line(_HEAD), table_line(["---"] * len(_HEAD))]
    lines += [table_line(_cells(row)) for row in rows]
    out.write_text("\n".join(lines) + "\n")


def _summary(rows: Sequence[Row]) -> list[str]:
    """The figures that the project is held to, one a line."""
    counts = Counter(row["status"] for row in rows)
    cut = [row for row in rows if "removed" in row]
    both = [row for row in cut if row.get("peer", {}).get("status") == "ok"]
    peers = Counter(row.get("peer", {}).get("status", "not run") for row in rows)
    walls = [row["wrap_s"] for row in rows if "wrap_s" in row]
    kept = [row for row in rows if "same_class" in row]
    revisions = Counter(row.get("revision", "not noted") for row in rows)
    lines = ["| | |", "|---|---|", f"| models | {len(rows)} of {len({_package(row) for row in rows})} packages |"]
    lines.append(f"| measured at | {', '.join(f'{name} ({count})' for name, count in revisions.most_common())} |")
    for status, meaning in STATUSES.items():
        if counts[status] or status in ("exact", "crash", "wrong"):
            share = f"{counts[status]} ({counts[status] / len(rows):.1%})"
            lines.append(f"| {status}{f': {meaning}' if meaning else ''} | {share} |")
    others = sum(any(map(_is_of_modes, row.get("limits", []))) for row in rows if row["status"] == "exact")
    lines.append(f"| exact, with a limit that is on neither (a mode that could not be followed) | {others} |")
    for place in _PLACES:
        values = [row["differences"][place] for row in rows if place in row.get("differences", {})]
        good = sum(_is_exact(row, place) for row in rows if place in row.get("differences", {}))
        lines.append(f"| exact there: {place} | {good} of {len(values)} |")
    lines.append(f"| class kept | {sum(row['same_class'] for row in kept)} of {len(kept)} |")
    if cut:
        chosen = sum("removed_all_outputs" in row for row in cut)
        lines.append(f"| models with outputs that do not count | {chosen} |")
        lines.append(f"| mean share of MACs removed, of the {len(cut)} that are cut | {_mean(cut, _ours):.3f} |")
        lines.append(f"| the same over all {len(rows)}, those that are not cut as 0 | {_mean(rows, _ours):.3f} |")
        both_means = f"{_mean(cut, _of_all_outputs):.3f}, {_mean(rows, _of_all_outputs):.3f}"
        lines.append(f"| these two means with every output preserved | {both_means} |")
        lines.append(f"| wrap, seconds: median, largest | {median(walls):.1f}, {max(walls):.0f} |")
    if both:
        shares = f"{_mean(both, _ours):.3f}, {_mean(both, _peer):.3f}"
        lines.append(f"| where both ran ({len(both)}): prunegate, Torch-Pruning | {shares} |")
    told = ", ".join(f"{count} {status}" for status, count in peers.most_common())
    return [*lines, f"| Torch-Pruning | {told} |"]


def _mean(rows: Sequence[Row], figure: Callable[[Row], float]) -> float:
    return mean(figure(row) for row in rows)


def _ours(row: Row) -> float:
    return float(row.get("removed", 0.0))


def _of_all_outputs(row: Row) -> float:
    """The share with every output preserved."""
    return float(row.get("removed_all_outputs", _ours(row)))


def _is_of_modes(limit: str) -> bool:
    """Whether a limit is on what could not be followed, rather than on which outputs are preserved."""
    return not limit.endswith("other outputs may be narrower or different")


def _peer(row: Row) -> float:
    return float(row["peer"]["removed"])


def _package(row: Row) -> str:
    return str(row["model"]).split("/")[1]


def _is_exact(row: Row, place: str) -> bool:
    value = row["differences"][place]
    is_rounding = row["notes"].get(place, "").startswith("rounding")
    return value is not None and value <= (1e-9 if row["dtype"] == "float64" and not is_rounding else 1e-3)


def _cells(row: Row) -> list[str]:
    peer = row.get("peer", {})
    remarks = [*row.get("limits", []), row.get("message", "")]
    return [
        str(row["model"]).partition("/")[2],
        f"{row['params'] / 1e6:.2f}" if "params" in row else "",
        str(row.get("groups", "")),
        str(row.get("units", "")),
        f"{row['wrap_s']:.1f}" if "wrap_s" in row else "",
        f"{row['seconds']:.0f}" if "seconds" in row else "",
        f"{row['removed']:.3f}" if "removed" in row else "",
        f"{row['removed_all_outputs']:.3f}" if "removed_all_outputs" in row else "",
        f"{peer['removed']:.3f}" if "removed" in peer else "",
        *(_difference(row, place) for place in _PLACES),
        row.get("dtype", ""),
        {True: "yes", False: "no"}.get(row.get("same_class"), ""),  # type: ignore[arg-type]
        str(row["status"]),
        "; ".join(f"{reason} ({channels})" for reason, channels in row.get("pinned", [])[:3]),
        "; ".join(remark for remark in remarks if remark)[:400],
        " ".join(str(peer.get(key, ""))[:100] for key in ("status", "message")).strip(),
    ]


def _difference(row: Row, place: str) -> str:
    note = row.get("notes", {}).get(place, "")
    if place not in row.get("differences", {}):
        return "—" if "differences" in row else ""
    value = row["differences"][place]
    if value is None:
        return "refuses" if note.startswith("refuses") else "other form"
    return f"{value:.0e}" + (" (rounding)" if note.startswith("rounding") and value > 1e-9 else "")
