"""Accuracy at equal measured latency: a latency budget beside budgets of MACs.

    python tools/bench/latency_accuracy.py [--tasks digits_vit fashion_resnet14] [--seeds 3]

Every method starts from the same dense model and trains for the same epochs, with the defaults of recipes. Latency is
that of one call of 64 samples on one thread, as a share of the dense model's, measured in turn with it:

- *latency*: ``Budget("latency_ms", 0.5)`` with ``round_to="auto"``;
- *macs*: ``Budget("macs", 0.5)``, which is what people ask for who want half the time;
- *macs, tuned*: the share of the MACs at which masks chosen by magnitude have half the latency, found beforehand.

One JSON line for each model goes to ``latency_accuracy.jsonl``, and the table to ``latency_accuracy.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

CHECKOUT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "tools" / "bench")]

from accuracy.measure import accuracy_of  # noqa: E402
from accuracy.ours import GATE_SHARE, _norm_batches  # noqa: E402
from accuracy.tasks import TASKS, Task, data_of, dense_model, example, train  # noqa: E402

import prunegate  # noqa: E402
from prunegate.recipe.gate_stage import gate_training, recovery  # noqa: E402
from prunegate.recipe.schema import GatesSettings, GateStageSettings, RecoverySettings, TauSettings  # noqa: E402

ASKED = 0.5
METHODS = ("latency", "macs", "macs, tuned")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["digits_vit", "fashion_resnet14"], metavar="TASK")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dense", type=Path, default=Path("runs/latency_accuracy"), help="folder of dense models")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"), help="where the table goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.dense.mkdir(parents=True, exist_ok=True)
    lines = options.out.with_suffix(".jsonl")
    known = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    done = {(row["task"], row["seed"], row["method"]) for row in known}  # go on where an earlier run ended
    for seed in range(options.seeds):
        for name in options.tasks:
            task = TASKS[name]
            dense = dense_model(task, seed, options.dense)
            for method in METHODS:
                if (name, seed, method) in done:
                    continue
                row = {"task": name, "seed": seed, "method": method, "dense": accuracy_of(dense, task)}
                row |= measured(method, dense, task, seed)
                with lines.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
    options.out.write_text(table([json.loads(line) for line in lines.read_text().splitlines()]))
    return 0


def measured(method: str, dense: nn.Module, task: Task, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    gated = prunegate.wrap(dense, example(task), round_to="auto" if method == "latency" else 1)
    latency = prunegate.measure_latency(gated, 64, threads=1)
    epochs = max(1, round(GATE_SHARE * task.epochs))
    steps = epochs * data_of(task.name).steps_per_epoch
    defaults = GateStageSettings(epochs=epochs, learning_rate=task.learning_rate)
    metric = "latency_ms" if method == "latency" else "macs"
    fraction = share_for(gated, latency) if method == "macs, tuned" else ASKED
    budget = prunegate.Budget(metric, fraction, ramp_steps=round(defaults.target_ramp * steps))
    gates = gate_training(gated, [budget], GatesSettings(), TauSettings(), steps, defaults.frozen, seed)
    train(gated, task, seed, task.plan("gate", epochs, defaults.final_learning_rate_fraction), gates=gates)
    gated.harden(budget)
    recovery(gated, dense, partial(_norm_batches, task, seed), RecoverySettings())
    compact = prunegate.compact(gated).model
    before = accuracy_of(compact, task)
    train(compact, task, seed, task.plan("finetune", task.epochs - epochs), first_epoch=epochs)
    keep = gated.gates.hard_mask().numpy()
    return {
        "fraction": fraction,
        "macs": gated.realised_cost() / gated.dense_cost(),
        "latency": float(np.median([latency.measured(keep, 1.5).ratio for _ in range(3)])),
        "hardened": before,
        "accuracy": accuracy_of(compact, task),
    }


def share_for(gated: prunegate.GatedModel, latency: prunegate.Latency) -> float:
    """The share of the MACs at which masks chosen by magnitude have the latency asked for."""
    gated.gates.start_at(0.99, gated.magnitudes())
    low, high = gated.least_cost() / gated.dense_cost(), 1.0
    for _ in range(7):
        middle = (low + high) / 2
        gated.harden(prunegate.Budget("macs", middle))
        if latency.measured(gated.gates.hard_mask().numpy(), 0.5).ratio <= ASKED:
            low = middle
        else:
            high = middle
    gated.release_masks()
    return low


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Accuracy at equal measured latency",
        "",
        "`python tools/bench/latency_accuracy.py`: means over seeds, with their range.",
        "",
        "| task | method | seeds | asked | latency | MACs | after hardening | accuracy | dense |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        for method in METHODS:
            own = [row for row in rows if row["task"] == task and row["method"] == method]
            if own:
                shares = [_told([row[key] for row in own], 3) for key in ("fraction", "latency", "macs")]
                points = [_told([100 * row[key] for row in own], 2) for key in ("hardened", "accuracy", "dense")]
                lines.append(f"| {task} | {method} | {len(own)} | " + " | ".join([*shares, *points]) + " |")
    return "\n".join([*lines, ""])


def _told(values: list[float], digits: int) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    raise SystemExit(main())
