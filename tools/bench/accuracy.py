"""Accuracy at equal MACs and equal epochs: prunegate beside Torch-Pruning's criteria, in one run.

    python tools/bench/accuracy.py [--task NAME ...] [--method NAME ...] [--seeds N] [--jobs 2]

For each task and seed one dense model is trained; every method starts from it, spends the same number of epochs
(gate and sparse epochs count) on the same batches with the same optimiser, and is measured before and after
finetuning. Rows go to accuracy.jsonl, one for each task, seed, method, budget and phase; what is there is not run
again. The table, with means and standard errors, goes to RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
OURS = "prunegate"


def main() -> int:
    from accuracy.peers import METHODS
    from accuracy.tasks import TASKS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--method", nargs="+", choices=[OURS, *METHODS], default=[OURS, *METHODS])
    parser.add_argument("--seeds", type=int, help="instead of each task's own number")
    parser.add_argument("--jobs", type=int, default=2, help="tasks and seeds at once (default 2)")
    parser.add_argument("--rows", type=Path, default=FOLDER / "accuracy.jsonl", help="where rows go")
    parser.add_argument("--out", type=Path, default=FOLDER / "RESULTS.md", help="where the table goes")
    parser.add_argument("--child", nargs=2, metavar=("TASK", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _run(options.child[0], int(options.child[1]), options.method, options.rows)
        return 0
    cases = [(t, seed) for t in options.task for seed in range(options.seeds or TASKS[t].seeds)]
    with ThreadPoolExecutor(options.jobs) as pool:
        failed = sum(pool.map(lambda case: _child(*case, options), cases))
    options.out.write_text(_table(_read(options.rows)))
    return int(failed > 0)


def _child(task: str, seed: int, options: argparse.Namespace) -> int:
    command = [sys.executable, "-W", "ignore", __file__, "--child", task, str(seed), "--rows", str(options.rows)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--method", *options.method], env=environment, check=False)
    return int(done.returncode != 0)


def _run(name: str, seed: int, methods: list[str], path: Path) -> None:
    """All methods on one task and seed that have no row yet."""
    import torch
    from accelerate.utils import set_seed
    from accuracy import ours, peers
    from accuracy.measure import accuracy_of, macs_of
    from accuracy.tasks import BUDGETS, TASKS, data_of, train

    torch.set_num_threads(1)
    task = TASKS[name]
    steps = data_of(name).steps_per_epoch
    there = {(r["method"], r["budget"]) for r in _read(path) if (r["task"], r["seed"]) == (name, seed)}
    missing = {m: tuple(b for b in BUDGETS if (m, b) not in there) for m in methods}
    # A method that a task has no place for (BN scales in a model without BN) gives no rows.
    set_seed(seed)
    dense = task.build()
    has_norms = any(isinstance(m, torch.nn.BatchNorm2d) for m in dense.modules())
    missing = {m: left for m, left in missing.items() if left and (m != "bn_scale" or has_norms)}
    if not missing:
        return
    train(dense, task, seed, task.plan("dense", task.dense_epochs))
    dense_macs, dense_accuracy = macs_of(dense, task), accuracy_of(dense, task)
    for method, fractions in missing.items():
        set_seed(seed)
        maker = ours.pruned if method == OURS else peers.pruned
        began = time.perf_counter()
        for fraction, model, spent in maker(method, dense, task, seed, fractions, dense_macs):
            common = {
                "task": name, "seed": seed, "method": method, "budget": fraction, "dense_accuracy": dense_accuracy,
                "dense_macs": dense_macs, "macs": macs_of(model, task), "epochs_before": spent,
            }  # fmt: skip
            samples = steps * task.data.batch_size
            # Forward and backward cost about three forwards; gate and sparse epochs run at the dense cost.
            compute = 3 * samples * spent * dense_macs
            rows = [{**common, "phase": "hardened", "accuracy": accuracy_of(model, task), "train_macs": compute}]
            train(model, task, seed, task.plan("finetune", task.epochs - spent), first_epoch=1000 + spent)
            compute += 3 * samples * (task.epochs - spent) * common["macs"]
            rows.append({**common, "phase": "finetuned", "accuracy": accuracy_of(model, task), "train_macs": compute})
            with path.open("a") as file:
                file.write("".join(json.dumps({**row, "seconds": time.perf_counter() - began}) + "\n" for row in rows))
            print(name, seed, method, fraction, *(f"{row['accuracy']:.4f}" for row in rows), flush=True)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _table(rows: list[dict[str, Any]]) -> str:
    cells: dict[tuple[str, float, str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cells[row["task"], row["budget"], row["method"]][row["phase"]].append(row)
    lines = [
        "# Accuracy at equal MACs and equal epochs",
        "",
        "Written by `python tools/bench/accuracy.py`. Mean ± standard error over seeds, in percent; MACs as a share of",
        "the dense model's, by torch's counter, the largest of all seeds; training compute in 10¹² MACs.",
        "",
        "| task | budget | method | seeds | dense | before finetuning | after | MACs | compute |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (task, budget, method), phases in sorted(cells.items(), key=lambda c: (c[0][0], -c[0][1], c[0][2])):
        after = phases["finetuned"]
        share = max(row["macs"] / row["dense_macs"] for row in after)
        compute = sum(row["train_macs"] for row in after) / len(after) / 1e12
        columns = [
            _mean([row["dense_accuracy"] for row in after]),
            _mean([row["accuracy"] for row in phases["hardened"]]),
            _mean([row["accuracy"] for row in after]),
        ]
        lines.append(
            f"| {task} | {budget} | {method} | {len(after)} | {' | '.join(columns)} | {share:.4f} | {compute:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _mean(values: list[float]) -> str:
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{100 * mean:.2f}"
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    return f"{100 * mean:.2f} ± {100 * error:.2f}"


if __name__ == "__main__":
    sys.exit(main())
