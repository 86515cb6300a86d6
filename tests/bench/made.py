"""Benchmarks with times of our choice, and small models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunegate.bench import Bench, BenchSettings, Contender, Row
from prunegate.bench.measure import ModelSize
from prunegate.measuring import Timing
from prunegate.runtimes import Setting

EAGER = Setting(1, "contiguous", "float32", "eager")


def timing(median: float, spread: float = 0.0) -> Timing:
    return Timing(median - spread / 2, median, median + spread / 2, 15)


def made_bench(
    times: Mapping[tuple[str, int], Timing | str],
    *,
    runtimes: Mapping[str, Mapping[tuple[str, int], Timing | str]] | None = None,
) -> Bench:
    """A benchmark of models named ``dense`` and others, which are compact.

    Args:
        times: Of (model, batch size) in eager mode: a timing, or why there is none.
        runtimes: The same of other runtimes.
    """
    all_times = {"eager": times, **(runtimes or {})}
    names = list(dict.fromkeys(name for name, _ in times))
    sizes = tuple(dict.fromkeys(size for _, size in times))
    rows = []
    for size in sizes:
        for runtime, entries in all_times.items():
            for name in names:
                found = entries[name, size]
                setting = Setting(1, "contiguous", "float32", runtime)
                if isinstance(found, str):
                    rows.append(Row(name, size, setting, reason=found))
                else:
                    rows.append(Row(name, size, setting, found, None, 2_000_000, 1_500_000))
    return Bench(
        tuple(ModelSize(name, name, None if name == "dense" else "dense", 500_000, 1_810_000) for name in names),
        "3×32×32",
        BenchSettings(sizes, (1,), runtimes=tuple(all_times)),
        tuple(rows),
        (),
        {"device": "A processor"},
    )


class Net(nn.Module):
    """A convolution, its BatchNorm and a linear layer."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class Branching(Net):
    """Its code depends on values, which cannot be traced."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x if x.sum() > 0 else -x)


def contenders(models: Sequence[nn.Module]) -> list[Contender]:
    """The first is dense, the others are its compact models."""
    names = ["dense", *(f"compact{i}" for i in range(1, len(models)))]
    return [
        Contender(name, name, model.eval(), "dense" if i else None)
        for i, (name, model) in enumerate(zip(names, models, strict=True))
    ]
