"""The trainer's own cost: `prunegate run` with gates off beside a bare PyTorch loop.

    python tools/bench/trainer_overhead.py [--epochs 12]

A run of a recipe trains its dense stage, with checkpoints, metrics and guards on. After each of its epochs a bare loop
(SGD, cosine, cross entropy, accuracy on the test set; nothing else) trains one epoch of the same model on the same
batches, so that both see the same machine. The ratio is bare seconds by ours, epoch by epoch; its median counts, and 1
is no overhead. The first epoch of each is left out. The result goes to trainer_overhead.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

FOLDER = Path(__file__).resolve().parent
sys.path.append(str(FOLDER.parent.parent))  # a checkout works without an install

# The smaller the step, the larger the share of what stands around it.
MODELS = {
    "small steps": ("timm/test_resnet", {"name": "digits", "image_size": 32, "batch_size": 64, "augment": "shift"}),
    "larger steps": ("timm/resnet18", {"name": "digits", "image_size": 64, "batch_size": 64, "augment": "shift"}),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=FOLDER / "trainer_overhead.md", help="where the table goes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for kind, (name, data) in MODELS.items():
        epochs = options.epochs if kind == "small steps" else max(3, options.epochs // 3)
        ours, bare, samples = _measure(name, data, epochs)
        ratio = statistics.median(b / a for a, b in zip(ours, bare, strict=True))
        figures = (samples / statistics.median(times) for times in (ours, bare))
        rows.append(
            f"| {kind} | {name} | {len(ours)} | " + " | ".join(f"{f:,.0f}" for f in figures) + f" | {ratio:.3f} |"
        )
        print(rows[-1], flush=True)
    told = __doc__[__doc__.index("A run of") - 1 :]
    head = (
        "| kind | model | epochs | prunegate (samples/s) | bare loop (samples/s) | ratio |\n| --- " + "| --- " * 5 + "|"
    )
    options.out.write_text(
        f"# Trainer overhead\n\nWritten by `python tools/bench/trainer_overhead.py`.\n{told}\n"
        + "\n".join([head, *rows])
        + "\n"
    )
    return 0


class _Alternating:
    """A listener that trains a bare epoch after each of the dense stage's, and notes the seconds of both."""

    def __init__(self, bare: Bare) -> None:
        self.bare, self.seconds, self.bare_seconds = bare, list[float](), list[float]()
        self._dense, self._began = False, 0.0

    def stage_started(self, stage: str, epochs: int) -> None:
        self._dense, self._began = stage == "dense", time.perf_counter()

    def run_started(self, start: Any) -> None: ...
    def step_ended(self, epochs_done: float, loss: float | None, samples: int) -> None: ...
    def note(self, text: str) -> None: ...
    def finished(self, comparison: Any, certificate: Mapping[str, Any], folder: str) -> None: ...

    def epoch_ended(self, record: Mapping[str, Any], dense_macs: int) -> None:
        if self._dense:
            self.seconds.append(time.perf_counter() - self._began)
            began = time.perf_counter()
            self.bare.epoch()
            self.bare_seconds.append(time.perf_counter() - began)
            self._began = time.perf_counter()


class Bare:
    """The loop that everybody writes."""

    def __init__(self, model: nn.Module, data: Any, epochs: int) -> None:
        self.model, self.data, self.number = model, data, 0
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, epochs * data.steps_per_epoch)

    def epoch(self) -> float:
        self.model.train()
        total = 0.0
        for inputs, labels, _ in self.data.train_batches(0, self.number):
            loss = F.cross_entropy(self.model(inputs), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            total += loss.item()
        self.number += 1
        self.model.eval()
        with torch.no_grad():
            right = [(self.model(x).argmax(1) == y).float().mean() for x, y, _ in self.data.test_batches()]
        return float(torch.stack(right).mean())


def _measure(name: str, data: Mapping[str, Any], epochs: int) -> tuple[list[float], list[float], int]:
    """Seconds of each epoch but the first, of ours and of the bare loop; and the samples of an epoch."""
    from prunegate.builders import Builder
    from prunegate.data import DataSettings, load_data
    from prunegate.recipe import Recipe, run

    arguments = {"in_chans": 1, "num_classes": 10}
    stage = {"epochs": 1, "learning_rate": 0.05}
    recipe = Recipe.model_validate(
        {
            "name": "overhead",
            "model": {"name": name, "arguments": arguments},
            "data": data,
            "stages": {"dense": stage | {"epochs": epochs}, "gate": stage, "finetune": stage | {"epochs": 0}},
        }
    )
    loaded = load_data(DataSettings.model_validate(data))
    listener = _Alternating(Bare(Builder.parse(name, arguments).build(), loaded, epochs))
    with tempfile.TemporaryDirectory() as folder:
        run(recipe, Path(folder) / "run", listener)
    return listener.seconds[1:], listener.bare_seconds[1:], loaded.steps_per_epoch * loaded.batch_size


if __name__ == "__main__":
    sys.exit(main())
