"""Latency: budgets asked and measured, predictions checked on random subnetworks, and what half the MACs gain.

    python tools/bench/latency.py [--models resnet50 ...] [--subnetworks 50] [--batch-size 1] [--precision float32]

For each model, with random weights, as accuracy plays no part here:

1. *Budget*: asked for 0.6 of the dense latency, with logits from magnitudes, and measured again afterwards.
2. *Predicted*: predicted over measured latency of random subnetworks, whose groups keep any number of units.
3. *Half the MACs*: latency of the models that keep half the MACs, with ``round_to`` ``auto`` and 1, and of one made by
   Torch-Pruning (L2 magnitude, the same share of each layer), measured in turn.

All times are of one model and the dense one in turn, in one process. One JSON line for each model goes to
``latency.jsonl``, and the table to ``latency.md``.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from torch import nn

CHECKOUT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "tools")]

import prunegate  # noqa: E402
from prunegate.latency import Latency, random_subnetwork  # noqa: E402
from prunegate.latency.runtimes import call_of, conditions  # noqa: E402
from prunegate.measuring import time_in_turn  # noqa: E402

MODELS = ("resnet50", "mobilenet_v2", "efficientnet_b0", "convnext_tiny", "vit_small_patch16_224")
ASKED = 0.6
MACS = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--subnetworks", type=int, default=50, help="random subnetworks of each model (default 50)")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--runtime", default="eager")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cache", type=Path, help="folder of measured operations")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"), help="where the table goes")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the table again")
    options = parser.parse_args()
    lines = options.out.with_suffix(".jsonl")
    if not options.table:
        for name in options.models:
            row = measure(name, options)
            with lines.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps({key: value for key, value in row.items() if key != "subnetworks"}), flush=True)
    options.out.write_text(table([json.loads(line) for line in lines.read_text().splitlines()]))
    return 0


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name) if hasattr(torchvision.models, name) else timm.create_model(name)
    return model.eval()


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(options.device)
    model, x = built(name).to(device), torch.randn(2, 3, 224, 224, device=device)
    start = time.perf_counter()
    gated = prunegate.wrap(model, x, round_to="auto")
    wrapped = time.perf_counter() - start
    start = time.perf_counter()
    latency = prunegate.measure_latency(
        gated, options.batch_size, threads=options.threads, precision=options.precision, runtime=options.runtime,
        cache=options.cache,
    )  # fmt: skip
    row: dict[str, Any] = {
        "model": name,
        "device": latency.environment["device"],
        "batch_size": options.batch_size,
        "precision": options.precision,
        "runtime": options.runtime,
        "dense_ms": latency.dense_ms,
        "wrap_s": wrapped,
        "table_s": time.perf_counter() - start,
        "not_timed": latency.not_timed,
    }
    gated.gates.start_at(0.9, gated.magnitudes(), 1.0)
    row |= asked_and_measured(gated, latency)
    row |= half_the_macs(name, model, x, gated, latency)
    row["subnetworks"] = predictions(gated, latency, options.subnetworks)
    return row


def asked_and_measured(gated: prunegate.GatedModel, latency: Latency) -> dict[str, Any]:
    start = time.perf_counter()
    gated.harden(prunegate.Budget("latency_ms", ASKED))
    seconds = time.perf_counter() - start
    keep = gated.gates.hard_mask().cpu().numpy()
    again = [latency.measured(keep, 2.0) for _ in range(3)]
    return {
        "asked": ASKED,
        "measured": float(np.median([one.ratio for one in again])),
        "steady": all(one.is_steady for one in again),
        "harden_s": seconds,
        "candidates": len(latency.measurements),
        "macs_of_it": gated.realised_cost() / gated.dense_cost(),
    }


def half_the_macs(
    name: str, model: nn.Module, x: torch.Tensor, gated: prunegate.GatedModel, latency: Latency
) -> dict[str, Any]:
    """Latency over dense at half the MACs."""
    results: dict[str, Any] = {}
    for round_to in ("auto", 1):
        gated.round_to = round_to
        gated.harden(prunegate.Budget("macs", MACS))
        keep = gated.gates.hard_mask().cpu().numpy()
        results[f"round_to_{round_to}"] = {
            "latency": latency.measured(keep, 2.0).ratio,
            "macs": gated.realised_cost() / gated.dense_cost(),
        }
    gated.round_to = "auto"
    try:
        results["torch_pruning"] = peer(copy.deepcopy(model), x, latency, gated)
    except Exception as error:  # the peer may fail in any way
        results["torch_pruning"] = {"error": f"{type(error).__name__}: {error}"[:100]}
    return results


def peer(model: nn.Module, x: torch.Tensor, latency: Latency, gated: prunegate.GatedModel) -> dict[str, float]:
    """Torch-Pruning's uniform L2 at the share of channels that leaves half the MACs."""
    import torch_pruning as tp

    low, high = 0.0, 0.9
    best: nn.Module | None = None
    for _ in range(6):
        ratio = (low + high) / 2
        pruned = copy.deepcopy(model)
        last = [module for module in pruned.modules() if isinstance(module, nn.Linear)][-1:]
        importance = tp.importance.GroupMagnitudeImportance(p=2)
        tp.pruner.MagnitudePruner(pruned, x, importance, pruning_ratio=ratio, ignored_layers=last).step()
        if share(pruned, x) <= MACS * share(model, x):
            best, high = pruned, ratio
        else:
            low = ratio
    assert best is not None
    with conditions(latency.num_threads):
        call = call_of(best, gated.example_inputs, latency.settings, latency.device)
        ours, dense = time_in_turn([call, latency._dense_call()], 2.0, device=latency.device, clock=latency._clock)
    return {"latency": ours.median_ms / dense.median_ms, "macs": share(best, x) / share(model, x)}


def share(model: nn.Module, x: torch.Tensor) -> float:
    from prunegate.report import counted_macs

    return counted_macs(model, tuple(x.shape[1:]))


def predictions(gated: prunegate.GatedModel, latency: Latency, count: int) -> list[tuple[float, float]]:
    """Predicted and measured latency over dense."""
    generator = np.random.default_rng(1)
    results = []
    for _ in range(count):
        keep = random_subnetwork(gated, generator)
        results.append((latency.predicted(keep) / latency.dense_ms, latency.measured(keep, 0.6).ratio))
    return results


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Latency",
        "",
        "`python tools/bench/latency.py`. Latencies are shares of the dense model's, measured in turn with it.",
        "",
        "| model | device | batch | dense | asked | measured | harden | table | MACs of it | predicted within 10% | "
        "half the MACs: `auto` | `round_to` 1 | Torch-Pruning |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        pairs = row["subnetworks"]
        off = np.array([predicted / measured - 1.0 for predicted, measured in pairs])
        told = [
            row["model"],
            row["device"],
            f"{row['batch_size']}, {row['precision']}, {row['runtime']}",
            f"{row['dense_ms']:.2f} ms",
            f"{row['asked']:.2f}",
            f"{row['measured']:.3f}{'' if row['steady'] else ' (not steady)'}",
            f"{row['harden_s']:.0f} s, {row['candidates']} candidates",
            f"{row['table_s']:.0f} s",
            f"{row['macs_of_it']:.3f}",
            f"{(abs(off) <= 0.1).mean():.0%} of {len(off)}, mean {off.mean():+.1%}" if len(off) else "",
            *(_told(row[key]) for key in ("round_to_auto", "round_to_1", "torch_pruning")),
        ]
        lines.append("| " + " | ".join(told) + " |")
    return "\n".join([*lines, ""])


def _told(half: dict[str, Any]) -> str:
    return half["error"] if "error" in half else f"{half['latency']:.2f} ({half['macs']:.3f} of the MACs)"


if __name__ == "__main__":
    raise SystemExit(main())
