"""Wrapping: seconds and memory, beside Torch-Pruning's `build_dependency` on the same models in the same run.

    python tools/bench/wrap_time.py [--only PATTERN ...] [--repeats 5]

Each model runs in a process of its own, on one thread. Our analysis and the peer's graph are made in turn,
several times; the shortest time of each counts, in seconds of processor time, which other work on the machine
disturbs less than the clock. The dry run of the surgery, which the peer does not make, is reported apart. So is the
peak of memory above what the process held before, in copies of the parameters: of the analysis, and of the whole
`wrap`, which holds the gated copy, a copy for the trial and the activations of two samples.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent.parent
MODELS = (
    "torchvision/resnet18",
    "torchvision/resnet50",
    "torchvision/mobilenet_v2",
    "torchvision/densenet121",
    "torchvision/efficientnet_b0",
    "torchvision/regnet_y_8gf",
    "torchvision/vit_b_16",
    "torchvision/swin_t",
    "torchvision/convnext_large",
    "timm/vit_large_patch16_224",
)
# Analysed without any weights.
ON_META = ("torchvision/vit_h_14", "timm/convnext_xxlarge")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="patterns of model names")
    parser.add_argument("--repeats", type=int, default=5, help="times each analysis is made (default 5)")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"), help="where the table goes")
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.append(str(CHECKOUT))
    if options.child:
        what, name = options.child
        print(json.dumps({"times": _times, "trial": _dry_run, "meta": _on_meta}[what](name, options.repeats)))
        return 0
    lines = [
        "| model | parameters (M) | analysis (s) | Torch-Pruning (s) | ratio | whole wrap (s) | of it trial (s) "
        "| peak memory of the analysis (copies of the parameters) | of the whole wrap |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in _chosen(MODELS, options.only):
        row = {**_run("times", name, options.repeats), **_run("trial", name, options.repeats)}
        ratio = row["ours"] / row["peer"] if row["peer"] else float("nan")
        lines.append(
            f"| {name} | {row['params'] / 1e6:.1f} | {row['ours']:.3f} | {row['peer']:.3f} | {ratio:.2f} "
            f"| {row['wrap']:.1f} | {row['wrap'] - row['ours']:.1f} "
            f"| {row['analysis_copies']:.2f} | {row['copies']:.2f} |"
        )
        print(lines[-1], flush=True)
    for name in _chosen(ON_META, options.only):
        row = _run("meta", name, options.repeats)
        lines.append(f"| {name} on the meta device | {row['params'] / 1e6:.1f} | {row['ours']:.3f} | | | | | | |")
        print(lines[-1], flush=True)
    command = "python tools/bench/wrap_time.py"
    options.out.write_text(f"# Wrap time\n\nWritten by `{command}`.\n{__doc__[__doc__.index('Each model') - 1:]}\n"
                           + "\n".join(lines) + "\n")  # fmt: skip
    return 0


def _chosen(models: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [model for model in models if any(fnmatch.fnmatch(model, pattern) for pattern in patterns)]


def _run(what: str, name: str, repeats: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--repeats", str(repeats), "--child", what, name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _model(name: str) -> Any:
    import timm
    import torch
    import torchvision

    torch.set_num_threads(1)
    library, _, short = name.partition("/")
    model = timm.create_model(short) if library == "timm" else torchvision.models.get_model(short)
    size = getattr(model, "image_size", 224) if library == "torchvision" else model.pretrained_cfg["input_size"][-1]
    return model.eval(), (2, 3, size, size)


def _times(name: str, repeats: int) -> dict[str, Any]:
    """Our analysis and the peer's, in turn."""
    import torch
    import torch_pruning

    from prunegate.groups import ExampleInputs, Trace

    warnings.simplefilter("ignore")
    model, shape = _model(name)
    inputs = torch.zeros(shape)
    ours, peer = [], []
    for _ in range(repeats):
        gc.collect()
        start = time.process_time()
        Trace(model, ExampleInputs.of(inputs)).analysis()
        ours.append(time.process_time() - start)
        gc.collect()
        start = time.process_time()
        torch_pruning.DependencyGraph().build_dependency(model, example_inputs=inputs[:1])
        peer.append(time.process_time() - start)
    return {"params": sum(p.numel() for p in model.parameters()), "ours": min(ours), "peer": min(peer)}


def _dry_run(name: str, repeats: int) -> dict[str, Any]:
    """A whole wrap, and its peak of memory above what was there before."""
    import torch

    import prunegate
    from prunegate.groups import ExampleInputs, Trace

    model, shape = _model(name)
    prunegate.wrap(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)), torch.zeros(2, 4))  # imports
    stored = sum(t.numel() * t.element_size() for t in model.parameters())
    inputs = torch.zeros(shape)
    peaks = []
    for work in (lambda: Trace(model, ExampleInputs.of(inputs)).analysis(), lambda: prunegate.wrap(model, inputs)):
        gc.collect()
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        start = time.process_time()
        work()
        wrap = time.process_time() - start
        peaks.append((_status("VmHWM") - before) / stored)
    return {"wrap": wrap, "analysis_copies": peaks[0], "copies": peaks[1]}


def _status(field: str) -> int:
    """A figure of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _on_meta(name: str, repeats: int) -> dict[str, Any]:
    import torch

    from prunegate.groups import ExampleInputs, Trace

    with torch.device("meta"):
        model, shape = _model(name)
        inputs = torch.zeros(shape)
    start = time.process_time()
    Trace(model, ExampleInputs.of(inputs)).analysis()
    return {"params": sum(p.numel() for p in model.parameters()), "ours": time.process_time() - start}


if __name__ == "__main__":
    sys.exit(main())
