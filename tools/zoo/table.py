"""RESULTS.md out of the result files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

Row = dict[str, Any]
PEERS = {"torch-pruning": "Torch-Pruning"}
_GOOD_SHARE = 0.45
# What is in a limit on the size of inputs.
_OF_SIZES = "of the sizes"
_INTRODUCTION = """# Coverage

Written by `python tools/zoo.py`. Each model is wrapped with a batch of two (one thread, CPU), given random weights,
masked at random three times (a quarter, half and three quarters of the units of every group stay) and compacted;
gated and compact model are then compared in float64 on new inputs with another batch size.

- removed: share of the MACs that is gone when half of the units of every group are masked.
- worst: largest max|a−b| / max|a| over all outputs and masks.
- ok: exact to 1e-9 each time. batch: exact, but the compact model runs at the traced batch size only. mismatch: not
  exact. vacuous: exact, but the outputs do not vary, so that says nothing. crash and timeout: see the remark.
- Limits stand under remark. Rows of models that were last run before limits were noted have none.
- Torch-Pruning, where it was run: 30 % of the channels by magnitude, out of the box, that is with nothing told about
  the model (such as its numbers of heads) but its class layers. ok: the pruned model runs and returns outputs of the
  same shapes; shapes: it runs, but they differ; nothing: no MACs are gone. Its ratio is another one, so its share is
  not comparable with ours.
"""
_HEAD = (
    "model",
    "params (M)",
    "groups",
    "units",
    "wrap (s)",
    "removed",
    "worst",
    "backend",
    "class kept",
    "status",
    "pinned",
    "peak (MiB)",
    "remark",
)
_PEER_HEAD = ("status", "removed", "dependency (s)", "remark")


def read_rows(path: Path) -> dict[str, Row]:
    """Rows by model; the last one of each counts, and a line cut short by a kill is skipped."""
    rows: dict[str, Row] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            rows[row["model"]] = row
        except (ValueError, KeyError, TypeError):
            continue
    return rows


def holds_sizes(limits: Iterable[str]) -> bool:
    """Whether one of the limits is on the size of inputs, so that the compact model runs at no other."""
    return any(_OF_SIZES in limit for limit in limits)


def write_table(folder: Path, out: Path) -> None:
    files = {path.stem.removeprefix("results-"): path for path in sorted(folder.glob("results-*-*.jsonl"))}
    results = {title: rows for title, path in files.items() if (rows := read_rows(path))}
    parts = [_INTRODUCTION]
    for title, rows in results.items():
        library, _, backend = title.partition("-")
        if backend in PEERS:
            continue
        peers = {PEERS[peer]: results.get(f"{library}-{peer}", {}) for peer in PEERS}
        parts.append(_section(library, backend, rows, {peer: found for peer, found in peers.items() if found}))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(parts))


def _section(library: str, backend: str, rows: dict[str, Row], peers: dict[str, dict[str, Row]]) -> str:
    names = sorted(rows)
    head = _HEAD + tuple(f"{peer}: {column}" for peer in peers for column in _PEER_HEAD)
    lines = [f"## {library}, backend {backend}", "", _summary([rows[name] for name in names])]
    lines += [_peer_summary(peer, [found[name] for name in names if name in found]) for peer, found in peers.items()]
    lines += ["", table_line(head), table_line(["---"] * len(head))]
    for name in names:
        cells = _cells(rows[name])
        for found in peers.values():
            cells += _peer_cells(found.get(name, {}))
        lines.append(table_line(cells))
    return "\n".join(lines) + "\n"


def _summary(rows: list[Row]) -> str:
    good = [row for row in rows if row.get("status") == "ok"]
    if not good:
        return f"{len(rows)} models, none ok."
    shares = [row["removed"] for row in good]
    enough = sum(share >= _GOOD_SHARE for share in shares)
    lowest = min(good, key=lambda row: row["removed"])
    worst = max((row["worst"] for row in rows if row.get("worst") is not None), default=0.0)
    kept = [row for row in good if row.get("backend") == "module"]
    kept_enough = sum(row["removed"] >= _GOOD_SHARE for row in kept)
    return (
        f"{len(rows)} models, {len(good)} ok. Of the ok ones: mean share removed {mean(shares):.3f}, lowest "
        f"{lowest['removed']:.3f} ({_short(lowest)}), median wrap {median(row['wrap_s'] for row in good):.1f} s. "
        f"Share of all models that are ok with at least {_GOOD_SHARE} removed: {enough / len(rows):.3f}; "
        f"with the module back-end, that is with the class kept: {kept_enough / len(rows):.3f}. "
        f"Worst finite difference of any model: {worst:.1e}." + _limits(rows)
    )


def _limits(rows: Sequence[Row]) -> str:
    """How many models run at any size, of those whose limits were noted, and at which revisions that was."""
    noted = [row for row in rows if "limits" in row]
    if not noted:
        return ""
    free = [row for row in noted if row.get("status") == "ok" and not holds_sizes(row["limits"])]
    without = [row for row in free if not row["limits"]]
    revisions = Counter(row.get("revision") or "not noted" for row in noted)
    return (
        f" Limits were noted for {len(noted)} models: {len(free)} are ok and not held to the size that was traced, "
        f"{len(without)} of these without any limit. "
        f"Measured at {', '.join(f'{name} ({count})' for name, count in revisions.most_common())}."
    )


def _peer_summary(peer: str, rows: list[Row]) -> str:
    good = [row for row in rows if row.get("status") == "ok"]
    text = f"\n{peer}: {len(rows)} models, {len(good)} ok"
    if good:
        text += f"; of these mean share removed {mean(row['removed'] for row in good):.3f}"
    return text + "."


def _short(row: Row) -> str:
    return str(row["model"]).partition("/")[2]


def _cells(row: Row) -> list[str]:
    kept = {True: "yes", False: "no"}
    return [
        _short(row),
        f"{row['params'] / 1e6:.2f}" if "params" in row else "",
        str(row.get("groups", "")),
        str(row.get("units", "")),
        f"{row['wrap_s']:.1f}" if "wrap_s" in row else "",
        f"{row['removed']:.3f}" if "removed" in row else "",
        _difference(row),
        row.get("backend", ""),
        kept.get(row.get("same_class"), ""),  # type: ignore[arg-type]
        str(row.get("status", "")),
        "; ".join(f"{reason} ({channels})" for reason, channels in row.get("pinned", [])[:3]),
        str(row.get("peak_mib", "")),
        _remark(row),
    ]


def _peer_cells(row: Row) -> list[str]:
    return [
        str(row.get("status", "")),
        f"{row['removed']:.3f}" if "removed" in row else "",
        f"{row['build_s']:.2f}" if "build_s" in row else "",
        row.get("message", "")[:120],
    ]


def _difference(row: Row) -> str:
    if "worst" not in row:
        return ""
    return "infinite" if row["worst"] is None else f"{row['worst']:.1e}"


def _remark(row: Row) -> str:
    limits = row.get("limits", [])
    remarks = [limit[:240] for limit in sorted(limits, key=lambda limit: not holds_sizes([limit]))[:1]]
    remarks += [f"{len(limits) - 1} more limits"] * (len(limits) > 1) + [row.get("message", "")[:240]]
    if row.get("weights") == "original":
        remarks.append("original weights: random ones overflow")
    return "; ".join(remark for remark in remarks if remark)


def table_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "/").split()) for cell in cells) + " |"
