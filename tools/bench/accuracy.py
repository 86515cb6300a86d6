"""Accuracy at equal MACs and equal epochs: prunegate beside Torch-Pruning's criteria, in one run.

    pip install -e '.[bench]'
    python tools/bench/accuracy.py [--task NAME ...] [--method NAME ...] [--seeds N] [--jobs 2]

For each task and seed one dense model is trained; every method starts from it, spends the same number of epochs
(gate and sparse epochs count) on the same batches with the same optimiser, and is measured before and after
finetuning. Rows go to accuracy.jsonl, one for each task, seed, method, budget and phase; what is there is not run
again. The table, with means and standard errors, goes to RESULTS.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
DENSE = FOLDER / "dense"
BEGIN, END = "<!-- what follows is made by accuracy.py -->", "<!-- up to here -->"
HALF_BUDGETS = (0.25,)


def main() -> int:
    from accuracy.peers import METHODS
    from accuracy.table import HALF, OURS, tables
    from accuracy.tasks import TASKS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--method", nargs="+", choices=[OURS, HALF, *METHODS], default=[OURS, HALF, *METHODS])
    parser.add_argument("--seeds", type=int, help="instead of each task's own number")
    parser.add_argument("--jobs", type=int, default=2, help="tasks and seeds at once (default 2)")
    parser.add_argument("--distil", action="store_true", help="everybody learns from the dense model as well")
    parser.add_argument("--rows", type=Path, default=FOLDER / "accuracy.jsonl", help="where rows go")
    parser.add_argument("--out", type=Path, default=FOLDER / "RESULTS.md", help="where the table goes")
    parser.add_argument("--child", nargs=2, metavar=("TASK", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _run(options.child[0], int(options.child[1]), options.method, options.rows, options.distil)
        return 0
    count = {name: options.seeds or TASKS[name].seeds for name in options.task}
    # Seed by seed, so that a run that is cut short has something of every task.
    cases = [(name, seed) for seed in range(max(count.values())) for name in options.task if seed < count[name]]
    with ThreadPoolExecutor(options.jobs) as pool:
        failed = sum(pool.map(lambda case: _child(*case, options), cases))
    _write(options.out, tables(_read(options.rows)))
    return int(failed > 0)


def _child(task: str, seed: int, options: argparse.Namespace) -> int:
    command = [sys.executable, "-W", "ignore", __file__, "--child", task, str(seed), "--rows", str(options.rows)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += ["--distil"] if options.distil else []
    done = subprocess.run([*command, "--method", *options.method], env=environment, check=False)
    return int(done.returncode != 0)


def _run(name: str, seed: int, methods: list[str], path: Path, distil: bool) -> None:
    """All methods on one task and seed that have no row yet."""
    import torch
    from accelerate.utils import set_seed
    from accuracy import ours, peers
    from accuracy.measure import accuracy_of, macs_of
    from accuracy.table import HALF, OURS
    from accuracy.tasks import BUDGETS, TASKS, data_of, dense_model, train

    torch.set_num_threads(1)
    whole = task = TASKS[name]
    steps = data_of(name).steps_per_epoch
    same = (name, seed, distil)
    there = {(r["method"], r["budget"]) for r in _read(path) if (r["task"], r["seed"], r["distilled"]) == same}
    has_norms = any(isinstance(m, torch.nn.BatchNorm2d) for m in task.build().modules())
    missing = {}
    for method in methods:
        budgets = HALF_BUDGETS if method == HALF else BUDGETS
        left = tuple(budget for budget in budgets if (method, budget) not in there)
        if left and (method != "bn_scale" or has_norms):  # no BN scales without BN
            missing[method] = left
    if not missing:
        return
    dense = dense_model(task, seed, DENSE)
    dense_macs, dense_accuracy = macs_of(dense, task), accuracy_of(dense, task)
    teacher = dense if distil else None
    for method, fractions in missing.items():
        set_seed(seed)
        maker = ours.pruned if method in (OURS, HALF) else peers.pruned
        task = dataclasses.replace(whole, epochs=whole.epochs // 2) if method == HALF else whole
        began = time.perf_counter()
        for fraction, model, spent in maker(method, dense, task, seed, fractions, dense_macs, teacher):
            common = {
                "task": name, "seed": seed, "method": method, "distilled": distil, "budget": fraction,
                "dense_accuracy": dense_accuracy, "dense_macs": dense_macs, "macs": macs_of(model, task),
                "epochs_before": spent,
            }  # fmt: skip
            samples = steps * task.data.batch_size
            # Forward and backward cost about three forwards; gate and sparse epochs run at the dense cost.
            compute = 3 * samples * spent * dense_macs
            rows = [{**common, "phase": "hardened", "accuracy": accuracy_of(model, task), "train_macs": compute}]
            train(model, task, seed, task.plan("finetune", task.epochs - spent), 1000 + spent, teacher=teacher)
            compute += 3 * samples * (task.epochs - spent) * common["macs"]
            rows.append({**common, "phase": "finetuned", "accuracy": accuracy_of(model, task), "train_macs": compute})
            with path.open("a") as file:
                file.write("".join(json.dumps({**row, "seconds": time.perf_counter() - began}) + "\n" for row in rows))
            print(name, seed, method, fraction, *(f"{row['accuracy']:.4f}" for row in rows), flush=True)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _write(path: Path, made: str) -> None:
    """Replace what lies between the marks, and keep what people have written around them."""
    text = path.read_text() if path.exists() else f"{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    path.write_text(f"{before}{BEGIN}\n\n{made}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    sys.exit(main())
