"""`prunegate show`: show the metadata of a checkpoint, without loading its weights."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunegate.cli.checkpoints import checkpoint_in
from prunegate.cli.console import console, say

if TYPE_CHECKING:
    from prunegate.checkpoint import Document

# Most characters shown of extra data, such as the names of a thousand classes.
_LONGEST_VALUE = 600


def show_command(arguments: argparse.Namespace) -> int:
    from prunegate.checkpoint import read_document, stored_sizes

    file = checkpoint_in(arguments.file)
    document, sizes = read_document(file), stored_sizes(file)
    stored = sum(math.prod(shape) for _, shape in sizes.values())
    if arguments.json:
        console().print_json(json.dumps(_as_json(document, sizes)))
    else:
        _print(file, document, stored)
    return 0


def _print(file: Path, document: Document, stored: int) -> None:
    from rich.table import Table

    builder = document.builder
    arguments = "".join(f", {key}={value!r}" for key, value in builder.arguments.items()) if builder else ""
    rows = [
        ("format", ".".join(map(str, document.version))),
        ("model", f"{builder.full_name}{arguments}" if builder else f"{document.class_name}: pass it to load"),
        ("stored numbers", f"{stored:,}"),
    ]
    for metric, costs in document.costs.items():
        if costs.get("dense") and "compact" in costs:
            share = costs["compact"] / costs["dense"]
            rows.append((metric, f"{costs['compact']:,} of {costs['dense']:,} ({share:.2%})"))
    rows += [(key, _shortened(json.dumps(value, ensure_ascii=False))) for key, value in document.extra.items()]
    if document.certificate:
        rows.append(("differs from the gated model", ", ".join(_differences(document.certificate))))
    rows.append(("fingerprint", "yes: prunegate verify compares it" if document.fingerprint else "none"))
    rows.append(("weights sha256", document.weights_sha256))
    table = Table(title=str(file), title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("value", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table)
    for number, step in enumerate(document.steps):
        title = "kept" if len(document.steps) == 1 else f"kept by compaction {number + 1}"
        kept = Table(title=title, title_justify="left")
        kept.add_column("channel group")
        for column in ("kept", "of", "share"):
            kept.add_column(column, justify="right")
        for name, units in step.plan.kept.items():
            total = step.plan.num_units[name]
            kept.add_row(name, str(len(units)), str(total), f"{len(units) / total:.1%}")
        console().print(kept)
        if not step.fix_ups.is_plain:
            played = "the whole model, as a graph" if step.fix_ups.graph else ", ".join(step.fix_ups.replayed)
            if played:
                say(f"replayed: {played}")
            if step.fix_ups.resized:
                say(f"sizes rewritten in the calls of: {', '.join(step.fix_ups.resized)}")


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]} ... (--json shows all)"


def _differences(certificate: Any) -> list[str]:
    """The largest relative difference in each precision that was measured."""
    results = []
    for precision in ("float64", "float32"):
        difference = certificate.get(precision)
        if isinstance(difference, dict) and isinstance(difference.get("max_rel"), float):
            results.append(f"{difference['max_rel']:.1e} ({precision})")
    return results or ["unknown"]


def _as_json(document: Document, sizes: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, Any]:
    return {
        "version": ".".join(map(str, document.version)),
        "builder": None if document.builder is None else document.builder.as_dict(),
        "class": document.class_name,
        "costs": document.costs,
        "extra": document.extra,
        "certificate": document.certificate,
        "fingerprint": document.fingerprint is not None,
        "weights_sha256": document.weights_sha256,
        "steps": [
            {
                "kept": {name: [len(units), step.plan.num_units[name]] for name, units in step.plan.kept.items()},
                "backend": step.fix_ups.backend,
                "resized": list(step.fix_ups.resized),
                "replayed": list(step.fix_ups.replayed),
            }
            for step in document.steps
        ],
        "tensors": {name: {"dtype": dtype, "shape": list(shape)} for name, (dtype, shape) in sizes.items()},
    }
