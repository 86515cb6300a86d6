"""First contact: a recipe to start from, its keys, users' own models, and less or more output."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunegate.builders import Builder
from prunegate.cli import main
from prunegate.recipe import Recipe, check_recipe, load_recipe
from prunegate.recipe.keys import recipe_keys
from prunegate.recipe.shipped_recipes import recipe_file, shipped_names
from tests.cli.commands import refused, succeeded
from tests.data.pictures import image_folder


def own_model(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 4, 3))


OWN = "tests.cli.test_front_door:own_model"


# --- init ---------------------------------------------------------------------------------------------------------


def test_init_writes_a_recipe_that_is_valid_and_fits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image_folder(folder / "images")
    classes = len(list((folder / "images" / "train").iterdir()))
    builder = Builder.parse("timm/test_resnet", {"num_classes": classes})
    torch.save({"state_dict": builder.build().state_dict()}, folder / "mine.pth")
    out = succeeded(capsys, "init", "timm/test_resnet", "--folder", "images", "--weights", "mine.pth")
    assert out == "recipe.yaml: written. Review it, then: prunegate run recipe.yaml --check\n"
    recipe = load_recipe(folder / "recipe.yaml")
    assert recipe.model.arguments == {"num_classes": classes}
    assert recipe.stages.dense.epochs == 0
    check_recipe(recipe)
    assert "# --check compares them with the model" in (folder / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["timm/resnet18", "--data", "cifar10"], {"num_classes": 10}),
        (["timm/resnet18", "--data", "digits"], {"num_classes": 10, "in_chans": 1}),
        (["torchvision/resnet18", "--data", "cifar10", "--arg", "num_classes=10"], {"num_classes": 10}),
        (["prunegate/cifar_resnet20", "--data", "cifar10", "--budget", "0.25"], {"num_classes": 10}),
        ([OWN, "--data", "my_data:sets", "--arg", "width=16"], {"width": 16}),
        (["timm/test_vit"], {}),
    ],
)
def test_init_knows_models_and_data_sets(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: dict[str, Any]
) -> None:
    succeeded(capsys, "init", *arguments, "--out", "new.yaml")
    recipe = load_recipe(folder / "new.yaml")
    assert recipe.model.arguments == expected
    assert recipe.stages.dense.epochs > 0
    assert recipe.budget.fraction == (0.25 if "0.25" in arguments else 0.5)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["timm/resnet8"], "timm has no model 'resnet8'. Nearest: timm/resnet"),
        (["timm/resnet18", "--arg", "pretrained=true"], "model.weights=weights.pth"),
        (["timm/resnet18", "--out", "tiny.yaml"], "tiny.yaml: exists already, expected a new file"),
        ([f"{OWN}s"], "has no attribute 'own_models'"),
    ],
)
def test_init_says_what_it_cannot_do(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert expected in refused(folder, capsys, "init", *arguments)


# --- recipe keys --------------------------------------------------------------------------------------------------


def test_every_key_is_listed_with_form_default_and_meaning() -> None:
    keys = {key.path: key for key in recipe_keys()}
    assert all(key.form and key.meaning for key in keys.values())
    assert keys["name"].default is None
    assert (keys["budget.metric"].form, keys["budget.metric"].default) == (
        "macs, params, latency_ms, memory_mb",
        '"macs"',
    )
    assert keys["data.batch_size"].form == "whole number, at least 2, at most 65536"
    listed = {path.partition(".")[0] for path in keys}
    assert listed == set(Recipe.model_fields)


def test_keys_are_printed_by_section_and_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = succeeded(capsys, "recipe", "keys", "tau")
    assert out.startswith("tau.start: number, above 0.0, at most 100.0; default 2.0\n    tau at the first step\n")
    assert out.count("tau.") == 3
    assert len(json.loads(succeeded(capsys, "recipe", "keys", "--json"))) == len(recipe_keys())
    message = refused(folder, capsys, "recipe", "keys", "budgets")
    assert "there is no key or section 'budgets'. Nearest: budget" in message


# --- inspect, show, shipped recipes -------------------------------------------------------------------------------


def test_own_models_are_inspected(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(succeeded(capsys, "inspect", OWN, "--input-size", "3", "8", "8", "--arg", "width=6", "--json"))
    assert found["model"] == OWN
    assert [group["num_units"] for group in found["groups"]] == [6]
    message = refused(folder, capsys, "inspect", OWN)
    assert "--input-size: is missing, expected the shape of one sample" in message


def test_show_takes_the_folder_of_a_run(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_folder = json.loads(succeeded(capsys, "show", str(run_folder), "--json"))
    assert of_folder == json.loads(succeeded(capsys, "show", str(run_folder / "compact.safetensors"), "--json"))


def test_shipped_recipes_are_found_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "quickstart" in shipped_names()
    for name in ("quickstart", "quickstart.yaml", "recipes/quickstart.yaml"):
        assert recipe_file(Path(name)).is_file()
    assert "valid; would write to runs/quickstart/" in succeeded(capsys, "run", "quickstart", "--check")
    assert recipe_file(Path("other/quickstart.yaml")) == Path("other/quickstart.yaml")
    (folder / "quickstart").write_text("name: mine")
    assert recipe_file(Path("quickstart")) == Path("quickstart")  # a file of one's own comes first


# --- less and more output -----------------------------------------------------------------------------------------


@pytest.fixture
def fresh_logging(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    levels: list[int] = []
    monkeypatch.setattr(logging, "basicConfig", lambda **given: levels.append(given["level"]))
    return levels


@pytest.mark.parametrize(
    ("arguments", "level"),
    [
        (["run", "tiny.yaml", "--check"], logging.WARNING),
        (["-v", "run", "tiny.yaml", "--check"], logging.INFO),
        (["run", "tiny.yaml", "--check", "-v"], logging.INFO),
        (["run", "-v", "tiny.yaml", "--check"], logging.INFO),
        (["run", "tiny.yaml", "--check", "--quiet"], logging.ERROR),
        (["--quiet", "run", "tiny.yaml", "--check"], logging.ERROR),
    ],
)
def test_options_of_all_commands_stand_before_or_after(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    fresh_logging: list[int],
    arguments: list[str],
    level: int,
) -> None:
    assert main(arguments) == 0
    assert fresh_logging == [level]
    assert (capsys.readouterr().out == "") == (level == logging.ERROR)


@pytest.mark.usefixtures("no_picture")
def test_a_run_prints_its_summary_as_json_and_nothing_else(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = json.loads(succeeded(capsys, "run", "tiny.yaml", "--json", "-q"))
    assert printed == json.loads((folder / "runs" / "tiny" / "summary.json").read_text())


def test_verify_can_be_quiet(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert succeeded(capsys, "verify", str(run_folder), "--quiet") == ""


def test_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert "0 success, 2 a mistake in the arguments or files" in out
    assert max(map(len, out.splitlines())) <= 110
