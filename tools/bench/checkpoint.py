"""Checkpoints: the size of a file beside its weights, and loading beside what any loader has to do.

    python tools/bench/checkpoint.py [--model torchvision/resnet50] [--repeats 7]

The model is pruned to half of its MACs by the size of its weights and saved. Then, in turn, several times: our
`load`, and what is compared with it, safetensors' own `load_file` of the same file and building the dense model on
the meta device. The shortest time of each counts, in one process on one thread. The result goes to checkpoint.md.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

FOLDER = Path(__file__).resolve().parent
sys.path.append(str(FOLDER.parent.parent))  # a checkout works without an install


def main() -> int:
    import prunegate
    from prunegate.builders import Builder

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="torchvision/resnet50")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=FOLDER / "checkpoint.md", help="where the table goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    builder = Builder.parse(options.model)
    with tempfile.TemporaryDirectory() as folder:
        file, plain = Path(folder) / "compact.safetensors", Path(folder) / "plain.safetensors"
        _save(builder, file)
        tensors = load_file(file)
        save_file(tensors, plain)
        weights = sum(t.numel() * t.element_size() for t in tensors.values())
        ours, theirs, skeleton = _shortest(
            options.repeats,
            lambda: prunegate.load(file),
            lambda: load_file(plain),
            lambda: _on_meta(builder),
        )
        size = file.stat().st_size
    beside = size - weights
    told = __doc__[__doc__.index("The model is") - 1 :]
    lines = [
        f"# Checkpoint\n\nWritten by `python tools/bench/checkpoint.py`.\n{told}",
        "| model | weights (bytes) | beside them (KiB) | load (ms) | load_file (ms) | building on meta (ms) | ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| {options.model} | {weights:,} | {beside / 1024:.1f} | {ours * 1e3:.1f} | {theirs * 1e3:.1f} "
        f"| {skeleton * 1e3:.1f} | {ours / (theirs + skeleton):.2f} |",
    ]
    print("\n".join(lines[1:]))
    options.out.write_text("\n".join(lines) + "\n")
    return 0


def _save(builder: Any, file: Path) -> None:
    import prunegate

    gated = prunegate.wrap(builder.build().eval(), torch.zeros(1, 3, 224, 224))
    gated.gates.start_at(0.9, gated.magnitudes(), 1.0)
    gated.harden(prunegate.Budget("macs", 0.5))
    prunegate.compact(gated).save(file, builder)


def _on_meta(builder: Any) -> torch.nn.Module:
    with torch.device("meta"):
        return builder.build()


def _shortest(repeats: int, *works: Callable[[], object]) -> list[float]:
    """Seconds of each, made in turn."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for work, found in zip(works, times, strict=True):
            gc.collect()
            start = time.perf_counter()
            made = work()
            found.append(time.perf_counter() - start)
            del made
    return [min(found) for found in times]


if __name__ == "__main__":
    sys.exit(main())
