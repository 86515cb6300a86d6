"""Compaction: seconds and memory, beside Torch-Pruning's `step` and one forward pass.

    python tools/bench/compact_time.py [--models resnet50 ...]

Each model runs in a process of its own, on one thread, at half of its MACs. Seconds are those of the processor, which
other work on the machine disturbs less than the clock. *harden* chooses the masks; *cut* slices the model; *compact* is
cut and certificate, which compares the compact model with the gated one in two precisions, in eval and training mode,
with gradients. Torch-Pruning computes importances and cuts, and then the model runs once, so that a crash would show.
Memory is the peak above what the process held before, in copies of the parameters.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent.parent
MODELS = ("resnet50", "vit_large_patch16_224", "convnext_xlarge")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="MODEL", help="names in timm")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"), help="where the table goes")
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path[:0] = [str(CHECKOUT)]
    if options.child:
        what, name = options.child
        print(json.dumps({"ours": _ours, "peer": _peer}[what](name)))
        return 0
    lines = [
        "| model | parameters (M) | harden (s) | cut (s) | compact (s) | memory (copies) | Torch-Pruning: step (s) "
        "| forward (s) | memory (copies) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in options.models:
        row = {**_run("ours", name), **_run("peer", name)}
        lines.append(
            f"| {name} | {row['params'] / 1e6:.1f} | {row['harden']:.2f} | {row['cut']:.2f} | {row['compact']:.1f} "
            f"| {row['compact_copies']:.2f} | {row['step']:.1f} | {row['forward']:.2f} | {row['peer_copies']:.2f} |"
        )
        print(lines[-1], flush=True)
    command = "python tools/bench/compact_time.py"
    head = f"# Compaction time\n\nWritten by `{command}`.\n{__doc__[__doc__.index('Each model') - 1 :]}\n"
    options.out.write_text(head + "\n".join(lines) + "\n")
    return 0


def _run(what: str, name: str) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", what, name]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def _model(name: str) -> Any:
    import timm
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    return model, torch.randn(2, *model.pretrained_cfg["input_size"])


def _measured(work: Callable[[], Any], stored: int) -> tuple[Any, float, float]:
    """The result, seconds of the processor, and the peak of memory in copies of the parameters."""
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    start = time.process_time()
    result = work()
    seconds = time.process_time() - start
    return result, seconds, (_status("VmHWM") - before) / stored


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _ours(name: str) -> dict[str, Any]:
    import prunegate
    from prunegate.wrapping import candidate

    model, x = _model(name)
    params = sum(parameter.numel() for parameter in model.parameters())
    gated = prunegate.wrap(model, x)
    gated.gates.start_at(0.9, gated.magnitudes(), 1.0)
    del model
    _, harden, _ = _measured(lambda: gated.harden(prunegate.Budget("macs", 0.5)), 4 * params)
    keep = gated.gates.hard_mask().numpy()
    _, cut, _ = _measured(lambda: candidate(gated, keep), 4 * params)
    _, compact, copies = _measured(lambda: prunegate.compact(gated), 4 * params)
    return {"params": params, "harden": harden, "cut": cut, "compact": compact, "compact_copies": copies}


def _peer(name: str) -> dict[str, Any]:
    import torch
    import torch_pruning as tp

    warnings.simplefilter("ignore")
    model, x = _model(name)
    params = sum(parameter.numel() for parameter in model.parameters())
    last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1:]
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    pruner = tp.pruner.MagnitudePruner(model, x, importance, pruning_ratio=0.3, ignored_layers=last)
    _, step, copies = _measured(pruner.step, 4 * params)
    with torch.no_grad():
        try:
            _, forward, _ = _measured(lambda: model(x), 4 * params)
        except RuntimeError:  # what it cut does not run
            forward = float("nan")
    return {"step": step, "forward": forward, "peer_copies": copies}


if __name__ == "__main__":
    raise SystemExit(main())
