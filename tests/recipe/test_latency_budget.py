"""Recipes with a latency budget."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import prunegate
from prunegate import BudgetError, RecipeError, RunStoppedError
from prunegate.measuring import peak_activation_bytes
from prunegate.recipe import Recipe, run
from prunegate.recipe.run_latency import _hash
from tests.latency.fake_times import fake_times
from tests.recipe.test_resume import RECIPE, StopAfter

pytestmark = pytest.mark.usefixtures("no_pictures", "faked")

LATENCY: dict[str, Any] = {"budget": {"metric": "latency_ms", "fraction": [0.8, 0.6]}, "latency": {"batch_size": 4}}

FILES = ("metrics.jsonl", "dense.safetensors", "compact-0.8.safetensors", "compact.safetensors", "latency.json")


def recipe(**changed: Any) -> Recipe:
    stages = {**RECIPE["stages"], "dense": {"epochs": 1, "learning_rate": 0.05}}
    files = {name: value for name, value in RECIPE.items() if name != "budget"}
    return Recipe.model_validate({**files, **LATENCY, "stages": stages, **changed})


@pytest.fixture(scope="module")
def faked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with fake_times(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, faked: None) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    run(recipe(), folder)
    return folder


def test_models_meet_the_latency_and_the_summary_says_asked_predicted_and_measured(undisturbed: Path) -> None:
    summary = json.loads((undisturbed / "summary.json").read_text())
    told = summary["latency_ms"]
    assert told["asked"] == pytest.approx(6.0)
    assert told["dense"] == pytest.approx(10.0)
    assert told["compact"] <= told["asked"]
    assert told["predicted"] > 0
    assert summary["budget"] == {"metric": "latency_ms", "fraction": 0.6}
    records = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    gate = [record for record in records if record["stage"] == "gate"]
    assert gate
    assert all(0 < record["realised_latency_ms"] <= 11 for record in gate)
    assert all("expected_latency_ms" not in record for record in records if record["stage"] != "gate")
    larger = summary["larger"][0]["costs"]["latency_ms"]
    assert told["compact"] < larger["compact"] <= 8.0
    assert prunegate.load(undisturbed / "compact.safetensors", model=_small()) is not None


def _small() -> Any:
    from tests.recipe.small import Small

    return Small()


def test_run_stopped_in_the_middle_ends_bit_for_bit_as_the_undisturbed_one(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    for _ in range(3):
        with pytest.raises(RunStoppedError):
            run(recipe(), folder, resume=True, stop=StopAfter(11))
    run(recipe(), folder, resume=True)
    assert [name for name in FILES if (undisturbed / name).read_bytes() != (folder / name).read_bytes()] == []


def test_run_measured_on_another_machine_is_refused_unless_accepted(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RunStoppedError):
        run(recipe(), folder, stop=StopAfter(12))
    path = folder / "latency.json"
    state = json.loads(path.read_text())["state"]
    state["environment"]["device"] = "cpu: a faster one"
    path.write_text(json.dumps({"state": state, "sha256": _hash(state)}))
    with pytest.raises(RecipeError, match=r"latency\.json: latencies were measured with device 'cpu: a faster one'"):
        run(recipe(), folder, resume=True)
    with pytest.raises(RunStoppedError):
        run(recipe(), folder, resume=True, accept_changes=True, stop=StopAfter(2))
    assert json.loads(path.read_text())["state"]["environment"]["device"] != "cpu: a faster one"


def test_damaged_edited_or_missing_measurements_are_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RunStoppedError):
        run(recipe(), folder, stop=StopAfter(4))
    path = folder / "latency.json"
    document = json.loads(path.read_text())
    document["state"]["dense_ms"] *= 1.01
    for text in ("{", "[]", "{}", json.dumps(document), None):
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        with pytest.raises(RecipeError, match=r"latency\.json: cannot be read.*--accept-changes to measure again"):
            run(recipe(), folder, resume=True)


def test_unreachable_latency_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"budget: found 0\.5 ms \(0\.050 of the dense 10 ms\), expected at least"):
        run(recipe(budget={"metric": "latency_ms", "limit": 0.5}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_limit_in_milliseconds_and_a_second_metric(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(recipe(budget={"metric": "latency_ms", "limit": 7.5, "also": {"params": 0.8}}), folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["budget"] == {"metric": "latency_ms", "limit": 7.5}
    assert summary["latency_ms"]["compact"] <= 7.5
    compact, dense = summary["comparison"]["compact"]["params"], summary["comparison"]["dense"]["params"]
    assert compact <= 0.8 * dense


def test_memory_in_megabytes_is_met_without_measuring(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(recipe(budget={"metric": "memory_mb", "fraction": 0.6}), folder)
    assert not (folder / "latency.json").exists()
    x = torch.zeros(1, 1, 16, 16)
    dense, compact = (
        sum(4 * parameter.numel() for parameter in model.parameters()) + peak_activation_bytes(lambda: model(x))  # noqa: B023
        for model in (_small().eval(), prunegate.load(folder / "compact.safetensors", model=_small()).eval())
    )
    assert compact <= 0.6 * dense


def test_round_to_is_auto_for_latency_and_one_otherwise() -> None:
    assert recipe().round_to == "auto"
    assert recipe(gates={"round_to": 4}).round_to == 4
    counted = recipe(budget={"metric": "macs", "fraction": 0.5})
    assert counted.round_to == 1
    assert not counted.needs_latency
    assert recipe(budget={"metric": "macs", "fraction": 0.5}, gates={"round_to": "auto"}).needs_latency


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"budget": {"metric": "macs", "limit": 1000.5}}, "found a limit of 1000.5 macs, expected a whole number"),
        ({"budget": {"metric": "latency_ms", "limit": 0}}, "greater than 0"),
        ({"budget": {"metric": "latency_ms", "also": {"latency_ms": 0.5}}}, "expected another metric"),
        ({"latency": {"batch_size": 0}}, "batch_size"),
        ({"latency": {"runtime": "tflite"}}, "runtime"),
        ({"gates": {"round_to": "best"}}, "round_to"),
    ],
)
def test_wrong_settings_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(**changed)
