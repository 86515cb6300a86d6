"""Seconds and peak memory that `wrap` takes on a device, dry run included.

    python tools/bench/wrap_on_device.py [--device cuda|cpu] [--models resnet50 vit_b_16] [--repeats 3]

The first call in a process loads what torch needs on that device and is given apart from the later ones, whose median
is given. Peak memory is what is allocated on a GPU, or the process's resident memory on a CPU, above what there was.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
import torchvision

import prunegate


def memory(device: str) -> float:
    """Peak so far, in MB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="*", default=["resnet50", "vit_b_16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="append the table to this file, too")
    options = parser.parse_args()
    lines = ["| model | device | first call | later calls | peak memory above the model |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for name in options.models:
        model = torchvision.models.get_model(name).to(options.device)
        x = torch.randn(2, 3, 224, 224, device=options.device)
        before = torch.cuda.memory_allocated() / 1e6 if options.device == "cuda" else memory(options.device)
        if options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(1 + options.repeats):
            began = time.perf_counter()
            gated = prunegate.wrap(model, x)
            if options.device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
            del gated
        later = statistics.median(times[1:])
        peak = memory(options.device) - before
        lines.append(f"| {name} | {options.device} | {times[0]:.2f} s | {later:.2f} s | {peak:.0f} MB |")
        print(lines[-1], flush=True)
    if options.out is not None:
        with options.out.open("a") as file:
            file.write("\n".join(lines) + "\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
