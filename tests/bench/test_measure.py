"""Models are measured in turn, and one that fails does not keep the others from being measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from prunegate.bench import BenchSettings, run_bench
from prunegate.bench import measure as module
from prunegate.groups import ExampleInputs
from tests.bench.made import Net, contenders

IMAGES = ExampleInputs.of(torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)))
BRIEF = BenchSettings((1, 3), (1,), seconds=0.01)


class Noting(nn.Module):
    """Notes its calls: its name and the batch size."""

    calls: list[tuple[str, int]]

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.weight = name, nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append((self.name, x.shape[0]))
        return x * self.weight


def test_models_take_turns_at_each_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []
    monkeypatch.setattr(Noting, "calls", calls, raising=False)
    run_bench(contenders([Noting(name) for name in "abc"]), IMAGES, BenchSettings((4, 2), (1,), seconds=0.001))
    for size in (4, 2):
        own = "".join(name for name, number in calls if number == size)
        assert own.endswith(5 * "aabbcc")  # an untimed call and a timed one
    sizes = [number for _, number in calls]
    assert sizes == sorted(sizes[:-3], reverse=True) + sizes[-3:]  # the last three calls count MACs


def test_figures_of_every_row() -> None:
    dense, compact = Net(8), Net(4)
    bench = run_bench(contenders([dense, compact]), IMAGES, BRIEF)
    assert [(row.model, row.batch_size) for row in bench.rows] == [
        ("dense", 1), ("compact1", 1), ("dense", 3), ("compact1", 3)
    ]  # fmt: skip
    for row in bench.rows:
        assert row.timing is not None
        assert row.samples_per_second == pytest.approx(1000 * row.batch_size / row.timing.median_ms)
    rows = bench.rows
    assert rows[0].weight_bytes == sum(t.nbytes for t in dense.state_dict().values())
    assert rows[2].activation_bytes == 3 * rows[0].activation_bytes  # type: ignore[operator]
    assert [size.macs for size in bench.models] == [16 * 8 * 27 + 8 * 2, 16 * 4 * 27 + 4 * 2]
    assert bench.speedup(rows[0]) is None
    assert bench.speedup(rows[1]) == pytest.approx(rows[0].timing.median_ms / rows[1].timing.median_ms)  # type: ignore


class OnlyPairs(Net):
    def forward(self, x: torch.Tensor) -> Any:
        if len(x) % 2:
            raise ValueError("expected pairs\nand more lines")
        return super().forward(x)


def test_a_row_that_cannot_be_run_has_the_reason() -> None:
    threads = torch.get_num_threads()
    bench = run_bench(contenders([Net(), OnlyPairs()]), IMAGES, BenchSettings((2, 3), (1,), seconds=0.01))
    assert [row.reason for row in bench.rows] == [None, None, None, "ValueError: expected pairs"]
    assert [row.timing is None for row in bench.rows] == [False, False, False, True]
    assert bench.as_dict()["rows"][3]["median_ms"] is None
    assert torch.get_num_threads() == threads


def test_a_far_too_slow_row_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SLOWEST", 1e-9)
    (row,) = run_bench(contenders([Net()]), IMAGES, BenchSettings((1,), (1,), seconds=0.01)).rows
    assert row.reason is not None
    assert row.reason.startswith("one call takes 0 s, so that measuring it would take minutes; raise --seconds to ")


def test_each_step_is_told() -> None:
    told: list[str] = []
    run_bench(contenders([Net()]), IMAGES, BenchSettings((3,), (1,), seconds=0.01), progress=told.append)
    assert told == ["batch 3, 1 thread: dense, eager", "batch 3, 1 thread: timing 1 of 1 in turn"]
