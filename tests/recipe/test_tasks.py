"""Recipes for more than classes: regression, segmentation, several outputs, samples that are dicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

from prunegate import DataError, RecipeError
from prunegate.data import DataSettings, load_data
from prunegate.recipe import Recipe, check_recipe, run
from tests.data.pictures import image_folder

pytestmark = pytest.mark.usefixtures("no_pictures")

HERE = "tests.recipe.test_tasks"


class Pictures(Dataset[Any]):
    """Noise, and what there is to tell of it, in the form that is asked for."""

    def __init__(self, form: str, count: int) -> None:
        self.images = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))
        self.form = form

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        image = self.images[index]
        brightness, mask = float(image.mean()), (image.sum(0) > 0).long()
        return {
            "number": (image, brightness),
            "vector": (image, torch.tensor([brightness, -brightness])),
            "mask": (image, mask),
            "pair": (image, (mask, torch.tensor([brightness]))),
            "dict": {"image": image, "mask": mask, "brightness": brightness, "name": f"picture {index}"},
            "no input": {"picture": image, "mask": mask},
            "of all sizes": (image, torch.zeros(index + 1)),
        }[self.form]


def pictures(form: str) -> tuple[Pictures, Pictures]:
    return Pictures(form, 48), Pictures(form, 16)


def regressor(outputs: int = 1) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, outputs))


class Segmenter(nn.Module):
    """Class scores for each pixel; and the brightness, if it is to tell that too."""

    def __init__(self, both: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.head, self.both = nn.Conv2d(12, 2, 1), both
        self.brightness = nn.Linear(12, 1)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.body(x)
        if not self.both:
            return self.head(x)
        return {"scores": self.head(x), "brightness": self.brightness(x.mean((2, 3)))}


def squared(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(outputs, labels.reshape(len(labels), -1))


def mean_error(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (outputs - labels.reshape(len(labels), -1)).abs().mean()


def of_pixels(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs, labels)


def pixel_accuracy(outputs: torch.Tensor, labels: torch.Tensor) -> float:
    return (outputs.argmax(1) == labels).float().mean().item()


def of_both(outputs: dict[str, torch.Tensor], labels: Any) -> torch.Tensor:
    mask, brightness = (labels["mask"], labels["brightness"]) if isinstance(labels, dict) else labels
    return F.cross_entropy(outputs["scores"], mask) + F.mse_loss(outputs["brightness"][:, 0], brightness.reshape(-1))


def mask_accuracy(outputs: dict[str, torch.Tensor], labels: Any) -> float:
    return pixel_accuracy(outputs["scores"], labels["mask"] if isinstance(labels, dict) else labels[0])


def raises(outputs: Any, labels: Any) -> Any:
    raise ValueError("these are no scores")


def gives_a_vector(outputs: torch.Tensor, labels: Any) -> torch.Tensor:
    return outputs.reshape(-1)


def gives_text(outputs: Any, labels: Any) -> str:
    return "good"


TASKS: dict[str, tuple[str, dict[str, Any], str, str, str]] = {
    "regression": ("regressor", {}, "number", "squared", "mean_error"),
    "regression of two": ("regressor", {"outputs": 2}, "vector", "squared", "mean_error"),
    "segmentation": ("Segmenter", {}, "mask", "of_pixels", "pixel_accuracy"),
    "several outputs": ("Segmenter", {"both": True}, "pair", "of_both", "mask_accuracy"),
    "dict samples": ("Segmenter", {"both": True}, "dict", "of_both", "mask_accuracy"),
}


def recipe(task: str, **changed: Any) -> Recipe:
    model, arguments, form, loss, metric = TASKS[task]
    stage = {"epochs": 1, "learning_rate": 0.01}
    sections: dict[str, Any] = {
        "name": "task",
        "model": {"name": f"{HERE}:{model}", "arguments": arguments},
        "data": {"name": f"{HERE}:pictures", "arguments": {"form": form}, "labels": "any", "batch_size": 8},
        "training": {"loss": f"{HERE}:{loss}", "metric": f"{HERE}:{metric}", "accumulation_steps": 2},
        "budget": 0.6,
        "stages": {"dense": stage, "gate": {**stage, "epochs": 2}, "finetune": stage},
    }
    for section, values in changed.items():
        sections[section] = sections.get(section, {}) | values
    return Recipe.model_validate(sections)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_of_ones_own_runs_from_end_to_end(tmp_path: Path, task: str) -> None:
    settings = recipe(task)
    check_recipe(settings)
    summary = run(settings, tmp_path / "run")
    assert summary.realised_macs <= 0.6 * summary.dense_macs
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert written["comparison"]["metric"] == TASKS[task][4]
    assert written["certificate"]["float64"]["max_rel"] <= 1e-9
    values = [json.loads(line)["accuracy"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(values) == 4
    assert all(0 <= value < 5 for value in values)


def test_a_metric_of_ones_own_is_told_by_its_name(tmp_path: Path) -> None:
    notes: list[str] = []

    class Notes:
        def __getattr__(self, _: str) -> Any:
            return lambda *given: notes.append(str(given[0]))

    run(recipe("segmentation"), tmp_path / "run", Notes())  # type: ignore[arg-type]
    assert any("of dense  pixel_accuracy 0." in note for note in notes)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"training": {"loss": None}}, r"training\.loss: found none with data\.labels=any, expected module:function"),
        ({"training": {"loss": None, "metric": None}}, r"training\.loss and training\.metric: found none with"),
        ({"training": {"metric": "mse"}}, r"training\.metric: found 'mse', expected module:function"),
        ({"training": {"metric": f"{HERE}:nil"}}, r"training\.metric: 'tests.*:nil' cannot be imported"),
        ({"distillation": {"weight": 0.5}}, r"distillation\.weight: found 0\.5 with data\.labels=any, expected 0"),
    ],
)
def test_what_does_not_go_with_labels_of_any_form_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_recipe(recipe("regression", **changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"training": {"loss": f"{HERE}:raises"}},
            r"training\.loss: .*raised ValueError: these are no scores\. It was ca",
        ),
        (
            {"training": {"loss": f"{HERE}:of_pixels"}},
            r"training\.loss: .*raised .*It was called with \(outputs, labels\): a tensor of shape \(16, 1\) and",
        ),
        (
            {"training": {"loss": f"{HERE}:gives_a_vector"}},
            r"returned a tensor of shape \(16,\), expected a 0-d tensor with a gradient",
        ),
        (
            {"training": {"metric": f"{HERE}:gives_text"}},
            r"training\.metric: .*returned a str \(good\), expected one fin",
        ),
    ],
)
def test_functions_that_do_not_fit_are_told_before_anything_is_trained(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        run(recipe("regression", **changed), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "digits"}, r"data\.labels: found any for digits, expected classes"),
        ({"num_classes": 3}, r"data\.num_classes: does not apply with data\.labels=any"),
        ({"mixup": {"mixup_alpha": 0.5}}, r"data\.mixup: does not apply with data\.labels=any"),
        ({"arguments": {"form": "no input"}}, "found a dict with the keys picture, mask, expected one of image, input"),
    ],
)
def test_data_that_do_not_go_with_labels_of_any_form_are_refused(given: dict[str, Any], message: str) -> None:
    sections = {"name": f"{HERE}:pictures", "labels": "any", "batch_size": 8, "arguments": {"form": "mask"}} | given
    if given.get("name") == "digits":
        del sections["arguments"]
    with pytest.raises(DataError, match=message):
        load_data(DataSettings.model_validate(sections))


def test_labels_that_cannot_be_joined_are_told() -> None:
    data = load_data(DataSettings(name=f"{HERE}:pictures", labels="any", arguments={"form": "of all sizes"}))
    with pytest.raises(DataError, match=r"data\.labels: found labels that cannot be joined to a batch"):
        next(iter(data.test_batches()))


def folder_of_images(folder: str) -> Any:
    from torchvision.datasets import ImageFolder

    return ImageFolder(f"{folder}/train"), ImageFolder(f"{folder}/val")


def test_images_that_would_be_moved_without_their_labels_are_refused(tmp_path: Path) -> None:
    image_folder(tmp_path)
    given = DataSettings(name=f"{HERE}:folder_of_images", labels="any", arguments={"folder": str(tmp_path)})
    with pytest.raises(DataError, match=r"data\.labels: train sample \d+: found a PIL image, expected a float tensor"):
        load_data(given)


def test_class_labels_name_the_way_out() -> None:
    given = DataSettings(name=f"{HERE}:pictures", num_classes=2, arguments={"form": "vector"}, batch_size=8)
    with pytest.raises(DataError, match=r"expected a class index from 0 to 1\..*data\.labels=any"):
        load_data(given)
