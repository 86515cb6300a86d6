"""The latency of a gated model: predicted, measured, and met."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import prunegate
from prunegate.latency import Latency, LatencySettings, Measured, random_subnetwork
from prunegate.latency.blocks import blocks_of
from prunegate.latency.cache import Cache
from prunegate.latency.latency import _fitted
from prunegate.measuring import Timing
from tests.latency.fake_times import fake_times, in_all

WIDTHS = [64, 96, 64, 128, 96, 64]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        pairs = zip([3, *WIDTHS], WIDTHS, strict=False)
        self.layers = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairs)
        self.norm, self.head = nn.BatchNorm2d(WIDTHS[-1]), nn.Linear(WIDTHS[-1], 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(self.norm(x).mean((2, 3)))


def wrapped(batch: int = 2, **options: object) -> prunegate.GatedModel:
    torch.manual_seed(0)
    return prunegate.wrap(Net().eval(), torch.randn(batch, 3, 8, 8), **options)


@pytest.fixture
def faked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with fake_times():
        yield


@pytest.mark.parametrize("fraction", [0.9, 0.6, 0.4])
@pytest.mark.parametrize("round_to", [1, "auto"])
@pytest.mark.usefixtures("faked")
def test_budget_is_met_on_the_measured_model_and_never_exceeded(fraction: float, round_to: object) -> None:
    gated = wrapped(round_to=round_to)
    latency = prunegate.measure_latency(gated)
    gated.gates.start_at(0.9, gated.magnitudes(), 1.0)
    gated.harden(prunegate.Budget("latency_ms", fraction))
    measured = in_all(latency, gated.gates.hard_mask().numpy())
    assert 0.95 * fraction <= measured.ratio <= fraction


@pytest.mark.usefixtures("faked")
def test_budgets_of_several_metrics_are_all_met() -> None:
    gated = wrapped()
    latency = prunegate.measure_latency(gated)
    gated.harden(prunegate.Budget("latency_ms", limit=7.0), prunegate.Budget("params", 0.3))
    assert in_all(latency, gated.gates.hard_mask().numpy()).ratio <= 0.7
    assert gated.realised_cost("params") <= 0.3 * gated.dense_cost("params")


@pytest.mark.usefixtures("faked")
def test_budget_below_the_narrowest_model_is_refused_and_masks_stay_as_they_were() -> None:
    gated = wrapped()
    prunegate.measure_latency(gated)
    with pytest.raises(prunegate.BudgetError, match=r"found 1\.5 latency_ms .*expected at least"):
        gated.harden(("latency_ms", 1.5))  # the fixed part alone is 2 ms
    assert not gated.gates.are_fixed


@pytest.mark.usefixtures("faked")
def test_noisy_measurements_still_end_below_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0)

    def noisy(self: Latency, keep: np.ndarray, seconds: float = 0.0) -> Measured:
        exact = in_all(self, keep)
        ms = exact.candidate.median_ms * noise.normal(1.0, 0.03)
        return Measured(Timing(ms, ms, ms, 9), exact.dense)

    gated = wrapped()
    latency = prunegate.measure_latency(gated)
    monkeypatch.setattr(Latency, "measured", noisy)
    gated.harden(prunegate.Budget("latency_ms", 0.6))
    assert latency.milliseconds(gated.gates.hard_mask().numpy()) <= 6.0


@pytest.mark.usefixtures("faked")
def test_expected_cost_trains_gates_down_to_the_target() -> None:
    gated = wrapped()
    prunegate.measure_latency(gated)
    budget = prunegate.Budget("latency_ms", 0.5)
    optimizer = torch.optim.Adam(gated.gate_parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        budget.penalty(gated).backward()
        optimizer.step()
        budget.step()
    assert gated.expected_cost("latency_ms").item() <= 0.52 * gated.dense_cost("latency_ms")


@pytest.mark.usefixtures("faked")
def test_dense_and_full_masks_cost_what_was_measured() -> None:
    gated = wrapped()
    latency = prunegate.measure_latency(gated)
    assert gated.dense_cost("latency_ms") == pytest.approx(latency.dense_ms) == pytest.approx(10.0)
    assert gated.realised_cost("latency_ms") == pytest.approx(10.0)
    assert gated.least_cost("latency_ms") < 5.0


@pytest.mark.usefixtures("faked")
def test_another_batch_size_is_traced_and_its_units_are_the_models() -> None:
    gated = wrapped(batch=2)
    one, four = (prunegate.measure_latency(gated, batch_size) for batch_size in (2, 4))
    assert len(one.cost.cells) == len(four.cost.cells)
    keep = random_subnetwork(gated, np.random.default_rng(0))
    for mine, other in zip(one.cost.cells, four.cost.cells, strict=True):
        assert [axis.tolist() for axis in mine.axes] == [axis.tolist() for axis in other.axes]
    assert four.predicted(keep) == pytest.approx(one.predicted(keep))


@pytest.mark.usefixtures("faked")
def test_state_restores_every_prediction_and_the_masks_of_harden() -> None:
    gated = wrapped(round_to="auto")
    latency = prunegate.measure_latency(gated)
    other = wrapped(round_to="auto")
    other.latency = Latency.of_state(other, json.loads(json.dumps(latency.state_dict())))
    keep = random_subnetwork(gated, np.random.default_rng(1))
    assert other.latency.predicted(keep) == latency.predicted(keep)
    assert other.latency.blocks == latency.blocks == [16] * len(gated.groups)
    for each in (gated, other):
        each.harden(prunegate.Budget("latency_ms", 0.7))
    assert torch.equal(gated.gates.hard_mask(), other.gates.hard_mask())


@pytest.mark.usefixtures("faked")
def test_measured_masks_are_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    gated = wrapped()
    latency = prunegate.measure_latency(gated)
    keep = random_subnetwork(gated, np.random.default_rng(1))
    first = latency.milliseconds(keep)
    monkeypatch.setattr(Latency, "measured", None)
    assert latency.milliseconds(keep) == first


@pytest.mark.usefixtures("faked")
def test_gated_model_with_a_latency_can_be_copied() -> None:
    gated = wrapped()
    prunegate.measure_latency(gated)
    for copied in (copy.deepcopy(gated), pickle.loads(pickle.dumps(gated))):
        assert copied.dense_cost("latency_ms") == gated.dense_cost("latency_ms")
        assert copied.latency.milliseconds(copied.narrowest()) < 10.0


def test_latency_without_measurement_says_what_to_call() -> None:
    gated = wrapped(round_to="auto")
    for use in (
        lambda: gated.expected_cost("latency_ms"),
        lambda: gated.harden(prunegate.Budget("latency_ms", 0.5)),
        lambda: gated.harden(prunegate.Budget("macs", 0.5)),  # round_to="auto" needs it too
        lambda: prunegate.GateSteps(gated, prunegate.Budget("latency_ms", 0.5), steps=10),
    ):
        with pytest.raises(prunegate.BudgetError, match=r"Call prunegate\.measure_latency\(gated\) first"):
            use()
    assert gated.least_cost("macs") < gated.dense_cost("macs")
    assert "macs" in str(gated.explain()).lower()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: found 0"),
        ({"precision": "int8"}, "precision: found 'int8'"),
        ({"runtime": "tensorrt"}, "runtime: found 'tensorrt'"),
        ({"threads": 0}, "threads: found 0"),
        ({"device": "gpu"}, "latency.device: found 'gpu', on which this machine cannot compute"),
        ({"device": "meta"}, "latency.device: found 'meta'"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(prunegate.BudgetError, match=message):
        prunegate.measure_latency(wrapped(), **options)


def test_plain_model_is_refused() -> None:
    with pytest.raises(prunegate.NotGatedError, match="measure_latency"):
        prunegate.measure_latency(Net())


def test_wrong_round_to_is_refused() -> None:
    with pytest.raises(prunegate.TraceError, match=r"round_to: found 'best', expected a whole number .* or 'auto'"):
        wrapped(round_to="best")


@pytest.mark.usefixtures("faked")
def test_blocks_are_those_of_the_kernels() -> None:
    gated = wrapped()
    latency = prunegate.measure_latency(gated)
    assert blocks_of(latency.cost, gated.groups) == [16] * len(gated.groups)


def test_real_times_of_a_small_model(tmp_path: Path) -> None:
    """Measured for real: times grow with widths, the prediction holds on the dense model, and the cache is used."""
    gated = wrapped()
    latency = prunegate.measure_latency(gated, 4, threads=1, cache=tmp_path)
    assert latency.not_timed == []
    assert latency.predicted(np.ones(gated.analysis.num_units, dtype=bool)) == pytest.approx(latency.dense_ms)
    assert latency.predicted(gated.narrowest()) < latency.dense_ms
    (written,) = tmp_path.glob("*.json")
    before = written.read_bytes()
    prunegate.measure_latency(gated, 4, threads=1, cache=tmp_path)
    assert written.read_bytes() == before
    assert latency.measured(gated.narrowest(), 0.05).ratio > 0


def test_precision_of_the_timed_model_does_not_change_the_gated_one(tmp_path: Path) -> None:
    gated = wrapped()
    prunegate.measure_latency(gated, precision="bfloat16", threads=1, cache=tmp_path)
    assert {p.dtype for p in gated.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in gated.weight_parameters())
    assert torch.get_num_threads() == 1


def test_damaged_cache_is_measured_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache({"device": "any"}, tmp_path)
    with fake_times():
        latency = Latency.measure(wrapped(), LatencySettings(), tmp_path)
    cache.add(latency._surfaces)
    assert cache.read() == latency._surfaces
    cache.path.write_text(cache.path.read_text()[:50])
    assert cache.read() == {}
    assert "not a table of latencies" in caplog.text
    cache.add(latency._surfaces)
    assert cache.read() == latency._surfaces


def test_cost_can_be_pickled() -> None:
    with fake_times():
        latency = Latency.measure(wrapped(), LatencySettings())
    again = pickle.loads(pickle.dumps(latency.cost))
    keep = np.ones(sum(WIDTHS), dtype=bool)
    assert again.exact(keep) == latency.cost.exact(keep)


@pytest.mark.parametrize(
    ("sums", "measured", "scale", "constant"),
    [
        ([1.0, 2.0, 4.0], [3.0, 5.0, 9.0], 2.0, 1.0),
        ([1.0, 2.0, 4.0], [1.5, 3.0, 6.0], 1.5, 0.0),
        ([1.0, 2.0, 4.0], [0.9, 2.1, 4.6], None, 0.0),  # steeper than in proportion: no negative constant
        ([1.0, 2.0, 4.0], [5.0, 4.0, 3.0], 0.0, None),  # what falls where the sum grows is noise
        ([0.0, 0.0, 0.0], [2.0, 2.0, 2.0], 0.0, 2.0),
    ],
)
def test_calibration_is_a_line_that_never_falls(
    sums: list[float], measured: list[float], scale: float | None, constant: float | None
) -> None:
    fitted = _fitted(np.array(sums), np.array(measured))
    assert min(fitted) >= 0.0
    for value, expected in zip(fitted, (scale, constant), strict=True):
        assert expected is None or value == pytest.approx(expected, abs=1e-9)


@pytest.mark.usefixtures("faked")
def test_a_cache_that_cannot_be_written_is_told_and_measuring_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    gated = wrapped()
    with pytest.warns(prunegate.PrunegateWarning, match="measured latencies cannot be kept there"):
        prunegate.measure_latency(gated, cache=str(tmp_path / "file" / "folder"))
    assert gated.dense_cost("latency_ms") == pytest.approx(10.0)


@pytest.mark.parametrize("number", [-1.0, float("nan"), 1e300])
def test_a_cache_with_times_that_none_can_be_is_measured_again(tmp_path: Path, number: float) -> None:
    cache = Cache({"device": "any"}, tmp_path)
    with fake_times():
        latency = Latency.measure(wrapped(), LatencySettings(), tmp_path / "other")
    cache.add(latency._surfaces)
    document = json.loads(cache.path.read_text())
    next(iter(document["surfaces"].values()))["milliseconds"][0][0] = number
    cache.path.write_text(json.dumps(document))
    assert Cache({"device": "any"}, tmp_path).read() == {}


@pytest.mark.usefixtures("faked")
def test_a_batch_size_that_the_model_does_not_take_is_named() -> None:
    class Fixed(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).reshape(2, 5)

    gated = prunegate.wrap(Fixed().eval(), torch.randn(2, 3, 8, 8))
    with pytest.raises(prunegate.BudgetError, match="does not run on its example inputs repeated to 4 samples"):
        prunegate.measure_latency(gated, 4)
