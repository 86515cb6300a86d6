from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

import prunegate
from prunegate import BudgetError, DataError, ModelNameError, NothingToPruneError, RecipeError, RunFolderError
from prunegate.builders import Builder
from prunegate.compaction.plan import Plan
from prunegate.recipe import Recipe, run
from prunegate.recipe.gate_stage import recovery
from prunegate.recipe.listener import RunSummary
from prunegate.recipe.run import _repeatable_convolutions
from prunegate.recipe.schema import RecoverySettings
from prunegate.report import Comparison, RunStart, counted_macs
from tests.conftest import SmallNet
from tests.recipe.short import undrawn

BASE: dict[str, Any] = {
    "name": "small",
    "seed": 3,
    "model": {"name": "timm/test_resnet", "arguments": {"in_chans": 1, "num_classes": 10}},
    "data": {"name": "digits", "image_size": 16, "batch_size": 64, "augment": "shift", "train_limit": 512},
    "budget": {"metric": "macs", "fraction": 0.5},
    "stages": {
        "dense": {"epochs": 2, "learning_rate": 0.1},
        "gate": {"epochs": 3, "learning_rate": 0.05, "target_ramp": 0.5},
        "finetune": {"epochs": 2, "learning_rate": 0.05},
    },
}


def recipe(**changed: Any) -> Recipe:
    """The base recipe, with single keys of sections changed: ``model={"name": ...}``."""
    merged = {
        key: value | changed[key] if isinstance(value, dict) and key in changed else changed.get(key, value)
        for key, value in BASE.items()
    }
    return Recipe.model_validate(merged | {key: value for key, value in changed.items() if key not in merged})


class Recorder:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.starts: list[RunStart] = []
        self.steps: list[float] = []
        self.losses: list[tuple[float | None, int]] = []
        self.records: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.ends: list[str] = []

    def run_started(self, start: RunStart) -> None:
        self.starts.append(start)

    def stage_started(self, stage: str, epochs: int) -> None:
        self.stages.append((stage, epochs))

    def step_ended(self, epochs_done: float, loss: float | None, samples: int) -> None:
        self.steps.append(epochs_done)
        self.losses.append((loss, samples))

    def epoch_ended(self, record: Mapping[str, Any], dense_macs: int) -> None:
        assert dense_macs > 0
        self.records.append(dict(record))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def finished(self, comparison: Comparison, certificate: Mapping[str, Any], folder: str) -> None:
        assert certificate["float64"]["max_rel"] <= 1e-9
        self.ends.append(folder)


def one_run(folder: Path) -> tuple[RunSummary, Recorder]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model runs no faster on two
    recorder = Recorder()
    summary = run(recipe(), folder, recorder)
    torch.set_num_threads(threads)
    return summary, recorder


@pytest.fixture
def no_picture() -> Iterator[None]:
    """For the runs of single tests; the finished one has its picture."""
    with undrawn():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSummary, Recorder]:
    return one_run(tmp_path_factory.mktemp("runs") / "first")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_run_leaves_everything_that_was_promised(finished: tuple[RunSummary, Recorder]) -> None:
    summary, _ = finished
    assert sorted(path.name for path in summary.folder.iterdir()) == [
        ".lock",
        "compact.safetensors",
        "dense.safetensors",
        "environment.json",
        "metrics.jsonl",
        "recipe.yaml",
        "report.png",
        "summary.json",
        "timings.jsonl",
    ]
    assert Recipe.model_validate(yaml.safe_load((summary.folder / "recipe.yaml").read_text())) == recipe()
    environment = json.loads((summary.folder / "environment.json").read_text())
    assert environment["prunegate"] == prunegate.__version__
    assert environment["torch"] == torch.__version__
    assert (summary.folder / "report.png").stat().st_size > 20_000


def test_metrics_hold_one_line_for_each_epoch_and_the_listener_heard_them(
    finished: tuple[RunSummary, Recorder],
) -> None:
    summary, recorder = finished
    found = lines(summary.folder)
    assert found == recorder.records
    assert [(r["stage"], r["epoch"]) for r in found] == [
        ("dense", 1), ("dense", 2), ("gate", 1), ("gate", 2), ("gate", 3), ("finetune", 1), ("finetune", 2)
    ]  # fmt: skip
    assert recorder.stages == [("dense", 2), ("gate", 3), ("finetune", 2)]
    assert recorder.steps[:9] == [1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 8, 1.0, 9 / 8]
    assert recorder.steps[-1] == 2.0
    assert recorder.ends == [str(summary.folder)]
    (start,) = recorder.starts
    assert start.stages == (("dense", 2), ("gate", 3), ("finetune", 2))
    assert {what for what, _ in start.facts} == {"model", "data", "budget", "device", "epochs", "folder"}
    assert all(loss is not None and loss > 0 and samples > 0 for loss, samples in recorder.losses)
    gate = [r for r in found if r["stage"] == "gate"]
    assert gate[-1]["tau"] == 0.1
    for record in gate:
        assert 0 < record["expected_macs"] < summary.dense_macs
        assert 0 < record["realised_macs"] <= summary.dense_macs
    assert gate[-1]["expected_macs"] < gate[0]["expected_macs"]


def test_budget_is_met_by_the_compact_model_itself(finished: tuple[RunSummary, Recorder]) -> None:
    summary, _ = finished
    dense, compact = summary.comparison.dense.macs, summary.comparison.compact.macs
    assert (dense, compact) == (summary.dense_macs, summary.realised_macs)
    assert 0.99 * 0.5 <= compact / dense <= 0.5
    model = prunegate.load(summary.folder / "compact.safetensors")
    assert counted_macs(model, (1, 16, 16)) == compact


def test_saved_model_has_the_finetuned_weights(finished: tuple[RunSummary, Recorder]) -> None:
    from prunegate.data import load_data
    from prunegate.training import evaluate

    summary, recorder = finished
    data = load_data(recipe().data)
    model = prunegate.load(summary.folder / "compact.safetensors")
    accuracy = evaluate(model, data.test_batches())
    assert accuracy == summary.comparison.compact.accuracy == recorder.records[-1]["accuracy"]
    assert accuracy > 0.5, "ten classes: chance is 0.1"


def test_summary_agrees_with_what_is_returned(finished: tuple[RunSummary, Recorder]) -> None:
    summary, _ = finished
    written = json.loads((summary.folder / "summary.json").read_text())
    assert written["comparison"] == json.loads(json.dumps(summary.comparison.as_dict()))
    assert written["accuracy_after_hardening"] == summary.accuracy_after_hardening
    assert written["certificate"]["float64"]["max_rel"] <= 1e-9


@pytest.mark.usefixtures("no_picture")
def test_same_recipe_gives_the_same_bits(finished: tuple[RunSummary, Recorder], tmp_path: Path) -> None:
    first, _ = finished
    second, _ = one_run(tmp_path / "second")

    assert (first.folder / "metrics.jsonl").read_bytes() == (second.folder / "metrics.jsonl").read_bytes()
    for name in ("dense.safetensors", "compact.safetensors"):
        one, other = load_file(first.folder / name), load_file(second.folder / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_folder_of_another_run_is_refused_and_untouched(finished: tuple[RunSummary, Recorder]) -> None:
    folder = finished[0].folder
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(RunFolderError, match=r"holds another run, expected a new or empty folder\. Nothing is over"):
        run(recipe(), folder)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_folder_with_other_files_or_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match="holds other files, expected a new or empty folder"):
        run(recipe(), tmp_path / "mine")
    with pytest.raises(RunFolderError, match="is a file, expected a folder"):
        run(recipe(), tmp_path / "mine" / "thesis.tex")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"budget": {"fraction": 0.0001}}, BudgetError, r"budget: found [\d,]+ macs .* expected at least [\d,]+"),
        ({"model": {"name": "timm/test_resnett"}}, ModelNameError, r"has no model 'test_resnett'.*timm/test_resnet"),
        (
            {"model": {"arguments": {"in_chans": 1, "num_classes": 4}}},
            RecipeError,
            r"returns \(2, 4\) for two images, expected \(2, 10\). Set model.arguments.num_classes to 10",
        ),
        (
            {"model": {"arguments": {"num_classes": 10}}},
            RecipeError,
            r"does not accept images of shape \(1, 16, 16\).*Set model\.arguments \(in_chans, img_size\)",
        ),
        ({"model": {"weights": "no/such.safetensors"}}, RecipeError, r"model\.weights: found no file 'no/such"),
        ({"data": {"name": "fashion_mnist", "folder": "no/such"}}, DataError, "found no Fashion-MNIST in no/such"),
        ({"gates": {"exclude": ["*"]}}, NothingToPruneError, "no channel group can be pruned"),
    ],
    ids=["budget", "model-name", "classes", "channels", "weights", "data", "excluded"],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    tmp_path: Path, changed: dict[str, Any], error: type[Exception], text: str
) -> None:
    recorder = Recorder()
    with pytest.raises(error, match=f"(?s){text}"):
        run(recipe(**changed), tmp_path / "runs" / "x", recorder)
    assert not (tmp_path / "runs").exists()
    assert recorder.stages == []


def kept_in(checkpoint: Path) -> dict[str, set[int]]:
    """The kept units of every channel group."""
    with safe_open(checkpoint, "pt") as file:
        plan = Plan.from_dict(json.loads(file.metadata()["prunegate"])["steps"][0]["plan"])
    return {name: set(kept) for name, kept in plan.kept.items()}


@pytest.mark.usefixtures("no_picture")
def test_several_budgets_give_nested_models_that_each_keep_to_theirs(tmp_path: Path) -> None:
    folder = tmp_path / "nested"
    stages = {"gate": {"epochs": 1, "learning_rate": 0.05}, "finetune": {"epochs": 1, "learning_rate": 0.05}}
    run(recipe(budget={"metric": "macs", "fraction": [0.6, 0.4]}, stages=stages), folder)
    large, small = prunegate.load(folder / "compact-0.6.safetensors"), prunegate.load(folder / "compact.safetensors")
    dense = Builder.parse(BASE["model"]["name"], BASE["model"]["arguments"]).build()
    shares = [counted_macs(model, (1, 16, 16)) / counted_macs(dense, (1, 16, 16)) for model in (large, small)]
    assert 0.594 <= shares[0] <= 0.6
    assert 0.396 <= shares[1] <= 0.4
    kept_large, kept_small = (kept_in(folder / name) for name in ("compact-0.6.safetensors", "compact.safetensors"))
    assert all(kept_small[name] <= kept_large[name] for name in kept_large)
    assert kept_small != kept_large
    told = json.loads((folder / "summary.json").read_text())
    assert [entry["fraction"] for entry in told["larger"]] == [0.6]
    assert told["budget"]["fraction"] == 0.4
    gate = [line for line in lines(folder) if line["stage"] == "gate"]
    assert len(gate) == 2
    assert gate[1]["target_macs"] < gate[0]["target_macs"]


@pytest.mark.usefixtures("no_picture")
def test_two_metrics_are_held_at_once(tmp_path: Path) -> None:
    budget = {"metric": "macs", "fraction": 0.6, "also": {"params": 0.4}}
    run(recipe(budget=budget), tmp_path / "both")
    costs = json.loads((tmp_path / "both" / "summary.json").read_text())["comparison"]
    macs, params = (costs["compact"][name] / costs["dense"][name] for name in ("macs", "params"))
    assert macs <= 0.6
    assert params <= 0.4
    assert macs >= 0.99 * 0.6 or params >= 0.99 * 0.4, "more was removed than either asks for"


def test_metric_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="found macs as the metric and again in also"):
        recipe(budget={"also": {"macs": 0.4}})


@pytest.mark.parametrize(("refit", "refits"), [("auto", False), ("always", True), ("never", False)])
def test_models_with_batch_norm_are_refitted_only_when_the_recipe_insists(
    refit: Literal["auto", "always", "never"], refits: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    batch = (torch.randn(64, 3, 8, 8, generator=generator), torch.randint(4, (64,), generator=generator))
    dense = SmallNet()
    gated = prunegate.wrap(dense, batch[0][:2])
    gated.harden(prunegate.Budget("macs", 0.5))
    found = recovery(gated, dense, lambda: [batch], RecoverySettings(refit=refit))
    assert (found.layers > 0) == refits
    assert float(gated.model.norm.running_mean.abs().sum()) > 0  # its statistics are made anew in any case


@pytest.mark.usefixtures("no_picture")
def test_hardened_weights_are_refitted_unless_the_recipe_says_no(tmp_path: Path) -> None:
    small = {"img_size": 16, "patch_size": 4, "in_chans": 1, "num_classes": 10, "embed_dim": 32, "depth": 2}
    accuracies, notes = [], []
    for refit in ("auto", "never"):
        changed = recipe(
            model={"name": "timm/vit_tiny_patch16_224", "arguments": small | {"num_heads": 2}},
            optimizer={"name": "adamw", "weight_decay": 0.05},
            recovery={"refit": refit, "samples": 200},
            stages={
                "dense": {"epochs": 25, "learning_rate": 3e-3},
                "gate": {"epochs": 1, "learning_rate": 1e-3},
                "finetune": {"epochs": 0, "learning_rate": 1e-3},
            },
        )
        recorder = Recorder()
        accuracies.append(run(changed, tmp_path / refit, recorder).accuracy_after_hardening)
        notes.append(next(note for note in recorder.notes if note.startswith("harden")))
    assert accuracies[0] > accuracies[1]
    assert "10 layers refitted" in notes[0]
    assert "refitted" not in notes[1]


def test_convolutions_are_repeatable_within_the_run_alone() -> None:
    with _repeatable_convolutions():
        assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.deterministic
