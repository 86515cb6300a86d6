from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from prunegate import RecipeError, RunStoppedError
from prunegate.recipe import check_recipe, run
from tests.recipe.test_resume import StopAfter, recipe

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_csv_and_tensorboard_get_every_epoch_once_also_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    settings = recipe(trackers=["csv", "tensorboard"], budget={"fraction": 0.5})
    with pytest.raises(RunStoppedError):
        run(settings, folder, stop=StopAfter(20))
    run(settings, folder, resume=True)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["stage"], int(row["epoch"]), float(row["loss"])) for row in rows] == [
        (line["stage"], line["epoch"], line["loss"]) for line in lines
    ]
    assert rows[0]["tau"] == ""
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("gate/tau")]
    assert found == [(epoch, pytest.approx(line["tau"])) for epoch, line in enumerate(lines, 1) if line["tau"]]


def test_missing_tensorboard_is_told_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without(name: str, *more: Any) -> Any:
        return None if name == "tensorboard" else find(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(RecipeError, match=r"trackers: tensorboard needs the package.*prunegate\[tensorboard\]"):
        check_recipe(recipe(trackers=["tensorboard"]))
