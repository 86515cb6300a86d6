"""Seconds of an epoch of the CIFAR-10 recipe, next to a bare loop over data on the device.

    python tools/bench/recipe_epoch.py --cifar FOLDER_OF_THE_NPZ_FILES [--epochs 2] [--train-limit 50000]

The bare loop trains the same network on the same images: they lie on the device, are shifted and mirrored there,
and nothing is read before the end of an epoch, which both end with a look at the accuracy on the test images. Images
come as JPEG files in two npz archives (``jpeg``, ``offsets``, ``labels``) and are written as CIFAR-10's binary files.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from prunegate.cifar_resnet import build
from prunegate.recipe import load_recipe, run

RECIPE = Path(__file__).parents[2] / "recipes" / "cifar10_resnet56.yaml"
STAGES = ("dense", "gate", "finetune")
_AT_ONCE = 2000
# Images, (n, 32, 32, 3), and labels.
Samples = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


def _decoded(files: tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]) -> npt.NDArray[np.uint8]:
    data, ends = files
    starts = ends - ends[0]
    return np.stack(
        [np.asarray(Image.open(io.BytesIO(data[a:b].tobytes())).convert("RGB")) for a, b in itertools.pairwise(starts)]
    )


def images_of(path: Path) -> Samples:
    """Images and labels of one archive."""
    with np.load(path) as archive:
        data, offsets, labels = archive["jpeg"], archive["offsets"], archive["labels"]
    parts = []
    for start in range(0, len(labels), _AT_ONCE):
        ends = offsets[start : start + _AT_ONCE + 1]
        parts.append((data[ends[0] : ends[-1]], ends))
    with ProcessPoolExecutor() as pool:
        return np.concatenate(list(pool.map(_decoded, parts))), labels


def write_binary(folder: Path, train: Samples, test: Samples) -> None:
    """CIFAR-10's own files: a label, then three planes of an image."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(0).permutation(len(train[1]))
    parts = [(f"data_batch_{n + 1}.bin", some) for n, some in enumerate(np.array_split(order, 5))]
    for name, some in parts:
        _write(folder / name, train[0][some], train[1][some])
    _write(folder / "test_batch.bin", *test)


def _write(path: Path, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> None:
    planes = images.transpose(0, 3, 1, 2).reshape(len(labels), -1)
    np.concatenate([labels[:, None], planes], axis=1).astype(np.uint8).tofile(path)


class BareLoop:
    """What a user would write who has the data on the device."""

    def __init__(self, train: Samples, test: Samples, batch: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.images, self.labels = self._on_device(*train)
        self.test_images, self.test_labels = self._on_device(*test)
        self.padded = F.pad(self.images, [4] * 4)
        torch.manual_seed(0)
        self.model: nn.Module = build("cifar_resnet56").to(self.device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
        self.batch = batch

    def _on_device(self, images: npt.NDArray, labels: npt.NDArray) -> tuple[torch.Tensor, torch.Tensor]:
        moved = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float().div_(255)
        return (moved - 0.45) / 0.25, torch.from_numpy(labels.astype(np.int64)).to(self.device)

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.randperm(len(self.labels), device=self.device)
        side = torch.arange(32, device=self.device)
        for start in range(0, len(order) - self.batch + 1, self.batch):
            some = order[start : start + self.batch]
            shift = torch.randint(0, 9, (self.batch, 2), device=self.device)
            columns = shift[:, 1:] + side
            flipped = torch.rand(self.batch, 1, device=self.device) < 0.5
            columns = torch.where(flipped, columns.flip(1), columns)
            rows = shift[:, :1] + side
            found = self.padded[some[:, None, None], :, rows[:, :, None], columns[:, None, :]]
            yield found.permute(0, 3, 1, 2).contiguous(), self.labels[some]

    def epoch(self) -> float:
        """Seconds of one."""
        began = time.perf_counter()
        self.model.train()
        total = torch.zeros((), device=self.device)
        for images, labels in self.batches():
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(images), labels)
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        self.model.eval()
        right = torch.zeros((), device=self.device)
        with torch.no_grad():
            for start in range(0, len(self.test_labels), 512):
                some = slice(start, start + 512)
                right += (self.model(self.test_images[some]).argmax(1) == self.test_labels[some]).sum()
        float(total), float(right)
        return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, required=True, help="folder of cifar10_{train,test}_jpeg.npz")
    parser.add_argument("--epochs", type=int, default=2, help="of each stage, and of the bare loop")
    parser.add_argument("--train-limit", type=int, default=50_000)
    parser.add_argument("--precision", default="no")
    parser.add_argument("--out", type=Path, help="append the table to this file, too")
    options = parser.parse_args()
    train, test = (images_of(options.cifar / f"cifar10_{part}_jpeg.npz") for part in ("train", "test"))
    chosen = np.random.default_rng(0).permutation(len(train[1]))[: options.train_limit]
    bare = BareLoop((train[0][chosen], train[1][chosen]), test, 128)
    times = [bare.epoch() for _ in range(1 + options.epochs)]
    plain = statistics.median(times[1:])
    lines = [
        "| | seconds an epoch (first, later) | to the bare loop |",
        "| --- | --- | --- |",
        f"| bare loop, data on the device | {times[0]:.2f}, {plain:.2f} | 1 |",
    ]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_binary(Path(folder) / "bin", train, test)
        changes = [f"data.folder={Path(folder) / 'bin'}", f"data.train_limit={options.train_limit}"]
        changes += [f"stages.{stage}.epochs={options.epochs}" for stage in STAGES]
        changes += ["stages.dense.warmup_epochs=0.0", f"training.precision='{options.precision}'"]
        summary = run(load_recipe(RECIPE, changes), Path(folder) / "run")
        rows = [json.loads(line) for line in (Path(folder) / "run" / "timings.jsonl").read_text().splitlines()]
    for stage in STAGES:
        own = [row["seconds"] for row in rows if row["stage"] == stage]
        later = statistics.median(own[1:] or own)
        lines.append(f"| recipe, {stage} | {own[0]:.2f}, {later:.2f} | {later / plain:.2f} |")
        print(lines[-1], flush=True)
    lines.append(f"| MACs kept, of 0.389 | {summary.realised_macs / summary.dense_macs:.4f} | |")
    print(lines[-1])
    if options.out is not None:
        with options.out.open("a") as file:
            file.write("\n".join(lines) + "\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
