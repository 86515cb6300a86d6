"""Throughput of one process and of two that share every batch, as `prunegate run` and torchrun start them.

    python tools/bench/processes.py [--epochs 4]

The same recipe is run by one process with one thread, by one with two threads, and by two with one thread each (gloo).
Samples per second are those of the median epoch but the first of each stage, evaluation included. The result goes to
processes.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
SAMPLES = 1408  # of an epoch: 22 batches of 64
RECIPE = {
    "name": "processes",
    "model": {"name": "timm/resnet18", "arguments": {"in_chans": 1, "num_classes": 10}},
    "data": {"name": "digits", "image_size": 64, "batch_size": 64, "augment": "shift"},
}
CASES = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--out", type=Path, default=FOLDER / "processes.md", help="where the table goes")
    options = parser.parse_args()
    stage = {"epochs": options.epochs, "learning_rate": 0.02}
    recipe = RECIPE | {"stages": dict.fromkeys(("dense", "gate", "finetune"), stage)}
    rows = []
    for name, (processes, threads) in CASES.items():
        found = _rates(recipe, processes, threads)
        rows.append(f"| {name} | " + " | ".join(f"{found[key]:,.0f}" for key in ("dense", "gate", "finetune")) + " |")
        print(rows[-1], flush=True)
    told = __doc__[__doc__.index("The same recipe") - 1 :]
    head = "| | dense (samples/s) | gate (samples/s) | finetune (samples/s) |\n| --- | ---: | ---: | ---: |"
    options.out.write_text(
        f"# Processes\n\nWritten by `python tools/bench/processes.py`.\n{told}\n" + "\n".join([head, *rows]) + "\n"
    )
    return 0


def _rates(recipe: dict[str, object], processes: int, threads: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "recipe.yaml", Path(folder) / "run"
        file.write_text(yaml.safe_dump(recipe))
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *(torchrun if processes > 1 else []), "-m", "prunegate", "run", str(file)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
        subprocess.run([*command, "--out", str(out)], check=True, env=environment, stdout=subprocess.DEVNULL)
        lines = [json.loads(line) for line in (out / "timings.jsonl").read_text().splitlines()]
    return {
        stage: SAMPLES / statistics.median(x["seconds"] for x in lines if x["stage"] == stage and x["epoch"] > 1)
        for stage in ("dense", "gate", "finetune")
    }


if __name__ == "__main__":
    sys.exit(main())
