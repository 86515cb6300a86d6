"""bf16 and gradient accumulation beside float32: one recipe, several seeds.

    python tools/bench/precision.py [--recipe recipes/quickstart.yaml] [--seeds 3]

Each setting runs the whole recipe with each seed. The table, with means and standard errors over the seeds, goes to
RESULTS.md.
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

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
BEGIN, END = "<!-- what follows is made by precision.py -->", "<!-- up to here, by precision.py -->"
SETTINGS = {
    "float32": [],
    "bf16": ["training.precision=bf16"],
    "float32, batches in 4 parts": ["training.accumulation_steps=4"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "quickstart.yaml")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=FOLDER / "RESULTS.md", help="where the table goes")
    options = parser.parse_args()
    rows = []
    for name, changes in SETTINGS.items():
        found = [_run(options.recipe, [*changes, f"seed={seed}"]) for seed in range(options.seeds)]
        rows.append(f"| {name} | " + " | ".join(_mean(column) for column in zip(*found, strict=True)) + " |")
        print(rows[-1], flush=True)
    head = f"| `{options.recipe.name}`, {options.seeds} seeds | dense | after hardening | finetuned | MACs kept |\n"
    table = "\n".join([head + "| --- | ---: | ---: | ---: | ---: |", *rows])
    text = options.out.read_text()
    before, _, rest = text.partition(BEGIN)
    options.out.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.partition(END)[2]}")
    return 0


def _run(recipe: Path, changes: list[str]) -> tuple[float, float, float, float]:
    """Accuracies in percent, and the share of the MACs."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "prunegate", "run", str(recipe), "--out", str(out)]
        command += [part for change in changes for part in ("--set", change)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        summary = json.loads((out / "summary.json").read_text())
    dense, compact = summary["comparison"]["dense"], summary["comparison"]["compact"]
    hardened = summary["accuracy_after_hardening"]
    return 100 * dense["accuracy"], 100 * hardened, 100 * compact["accuracy"], compact["macs"] / dense["macs"]


def _mean(values: tuple[float, ...]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f}" if max(values) <= 1.0 else f"{statistics.mean(values):.2f} ± {error:.2f}"


if __name__ == "__main__":
    sys.exit(main())
