"""What gates cost in a training step: time, memory and operations, next to the plain model in the same process.

    python tools/bench/gate_overhead.py [--device cpu|cuda] [--compiled] [--models resnet50 ...] [--pairs 15]

Both models are of one architecture and take the same batches; their steps (forward, backward, an SGD step, and for the
gated one `GateSteps`) take turns, so that what else the machine does meets both. The table gives the medians of both,
and the median of the ratios of the pairs. On a CPU it is CPU time of one thread in float32, at batch 16; on a GPU wall
time between synchronisations, under bfloat16 autocast at batch 64, channels-last for convolutional networks. Peak
memory is allocated memory on a GPU, measured apart for each. Operations are counted where torch dispatches them.
"""

from __future__ import annotations

import argparse
import fcntl
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import prunegate

MODELS = ("resnet50", "mobilenet_v3_large", "vit_small_patch16_224")
COUNTED = ("resnet18", "resnet50", "resnet152")


class Count(TorchDispatchMode):
    """Counts operations as torch dispatches them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def build(name: str) -> nn.Module:
    if name.startswith("vit_"):
        import timm

        made: nn.Module = timm.create_model(name)
        return made
    import torchvision

    return torchvision.models.get_model(name)


class Trained:
    """A model with its optimiser, and `GateSteps` if it is gated."""

    def __init__(self, name: str, device: str, batch: int, gated: bool, compiled: bool, steps: int) -> None:
        torch.manual_seed(0)
        model = build(name).to(device).train()
        on_gpu = device == "cuda"
        self.layout = torch.channels_last if on_gpu and not name.startswith("vit") else torch.contiguous_format
        model = model.to(memory_format=self.layout)
        self.images = torch.randn(batch, 3, 224, 224, device=device).contiguous(memory_format=self.layout)
        self.labels = torch.randint(1000, (batch,), device=device)
        self.gates: prunegate.GateSteps | None = None
        self.wrap_s = 0.0
        if gated:
            began = time.perf_counter()
            wrapped = prunegate.wrap(model, self.images[:2])
            self.wrap_s = time.perf_counter() - began
            self.gates = prunegate.GateSteps(wrapped, 0.5, steps=steps, frozen=0.0)
            weights, model = list(wrapped.weight_parameters()), wrapped
        else:
            weights = list(model.parameters())
        self.model: Any = torch.compile(model, fullgraph=True) if compiled else model
        self.optimizer = torch.optim.SGD(weights, 1e-3, momentum=0.9, fused=on_gpu)
        self.precision: Callable[[], Any] = (lambda: torch.autocast("cuda", torch.bfloat16)) if on_gpu else nullcontext

    def step(self) -> None:
        self.optimizer.zero_grad()
        with self.precision():
            loss = F.cross_entropy(self.model(self.images), self.labels)
        loss.backward()
        if self.gates is not None:
            self.gates.step()
        self.optimizer.step()


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def timed(one: Trained, device: str, steps: int) -> float:
    """Milliseconds of a step, over ``steps`` of them in a row."""
    began = clock(device)
    for _ in range(steps):
        one.step()
    return 1e3 * (clock(device) - began) / steps


def peak(name: str, device: str, batch: int, gated: bool) -> float:
    """Peak of allocated memory in a step, in MB."""
    one = Trained(name, device, batch, gated, False, 100)
    one.step()
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    one.step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 1e6


def kernels(one: Trained) -> int:
    """Kernels that a step launches on the GPU."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        one.step()
        torch.cuda.synchronize()
    return sum("CUDA" in str(event.device_type) for event in found.events())


@contextmanager
def turn(lock: Path | None) -> Iterator[None]:
    """The only process that measures, of those that were given the same file."""
    if lock is None:
        yield
        return
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def compare(
    name: str, device: str, compiled: bool, pairs: int, steps: int, batch: int, lock: Path | None = None
) -> str:
    """A row of the table."""
    total = pairs * steps + 50
    plain, gated = (Trained(name, device, batch, gated, compiled, total) for gated in (False, True))
    for _ in range(3 if device == "cpu" else 10):
        plain.step()
        gated.step()
    with turn(lock):
        found = [(timed(plain, device, steps), timed(gated, device, steps)) for _ in range(pairs)]
    a, b = (statistics.median(times) for times in zip(*found, strict=True))
    ratio = statistics.median(gated_ms / plain_ms for plain_ms, gated_ms in found)
    launched = f"{kernels(plain)} / {kernels(gated)}" if device == "cuda" else ""
    del plain, gated
    memory = ""
    if device == "cuda" and not compiled:
        torch.cuda.empty_cache()
        without, with_gates = (peak(name, device, batch, gated) for gated in (False, True))
        memory = f"{without:.0f} / {with_gates:.0f} MB: {with_gates / without:.3f}"
    form = "compiled" if compiled else "eager"
    return f"| {name} | {form} | {a:.1f} / {b:.1f} ms | **{ratio:.3f}** | {memory} | {launched} |"


def operations(name: str, device: str) -> str:
    """How many operations gates add to a step."""
    counts = []
    for gated in (False, True):
        one = Trained(name, device, 2, gated, False, 100)
        one.step()
        with Count() as count:
            one.step()
        counts.append(count.count)
    return f"| {name} | {counts[0]} | {counts[1] - counts[0]} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=None, help="steps between two looks at the clock")
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--compiled", action="store_true", help="only compiled; without it only eager")
    parser.add_argument("--counts", nargs="*", default=list(COUNTED), help="models whose operations are counted")
    parser.add_argument("--lock", type=Path, help="processes that compile at the same time measure one after the other")
    parser.add_argument("--out", type=Path, help="append the tables to this file, too")
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    if not on_gpu:
        torch.set_num_threads(1)  # CPU time of several holds what they wait for each other
    batch = options.batch or (64 if on_gpu else 16)
    steps = options.steps or (5 if on_gpu else 1)

    def show(line: str) -> None:
        print(line, flush=True)
        if options.out is not None:
            with options.out.open("a") as file:
                file.write(line + "\n")

    if options.models:
        show("| model | | plain / gated step | ratio | peak memory | kernels a step |")
        show("| --- | --- | --- | --- | --- | --- |")
    for name in options.models:
        show(compare(name, options.device, options.compiled, options.pairs, steps, batch, options.lock))
    if options.counts:
        show("\n| model | operations of a plain step | that gates and GateSteps add |\n| --- | --- | --- |")
    for name in options.counts:
        show(operations(name, options.device))
    return 0


if __name__ == "__main__":
    sys.exit(main())
