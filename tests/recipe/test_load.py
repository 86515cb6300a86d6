"""Loading recipes: valid ones, and all mistakes at once, each with its position."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import BaseModel

from prunegate.builders import Builder
from prunegate.errors import DataError, ModelNameError, RecipeError
from prunegate.own_code import OwnBuilder
from prunegate.recipe import Recipe, check_recipe, load_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))

# One key a line: line numbers below count on it.
GOOD = """\
name: good
seed: 1
model:
  name: timm/test_resnet
  arguments: {in_chans: 1, num_classes: 10}
data:
  name: digits
  image_size: 32
budget:
  metric: macs
  fraction: 0.5
tau:
  start: 2.0
  end: 0.1
stages:
  dense: {epochs: 1, learning_rate: 0.1}
  gate: {epochs: 1, learning_rate: 0.1}
  finetune: {epochs: 1, learning_rate: 0.1}
"""


def written(folder: Path, text: str = GOOD) -> Path:
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).splitlines()


def sections(model: type[BaseModel] = Recipe) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from sections(field.annotation)


def test_there_are_recipes() -> None:
    assert {path.stem for path in RECIPES} >= {"quickstart", "fashion_mnist_resnet", "cifar10_resnet56"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_of_the_repository_is_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.folder == Path("runs") / path.stem
    try:
        check_recipe(recipe)
    except DataError:  # images that this machine need not have; all else must be right
        assert recipe.data.name != "digits"


def test_every_key_is_described() -> None:
    found = {section.__name__: section for section in sections()}
    assert len(found) == 19
    missing = [
        f"{name}.{key}"
        for name, section in found.items()
        for key, field in section.model_fields.items()
        if not field.description
    ]
    assert missing == []


def test_defaults_fill_what_is_not_given(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path))
    assert recipe.tau.schedule == "exponential"
    assert recipe.gates.initial_keep_probability == 0.99
    assert recipe.stages.gate.target_ramp == 0.5
    assert recipe.stages.gate.frozen == 0.4


def test_dumped_recipe_is_the_same_recipe_with_every_default(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path), ["gates.exclude=['layer4.*']", "optimizer.weight_decay=1e-4"])
    text = recipe.dump_yaml()
    assert load_recipe(written(tmp_path, text)) == recipe
    assert yaml.safe_load(text)["gates"]["exclude"] == ["layer4.*"]
    assert yaml.safe_load(text)["optimizer"]["weight_decay"] == 1e-4


def test_all_mistakes_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    text = (
        GOOD.replace("seed: 1", "seed: one")
        .replace("  image_size: 32", "  image_sise: 32")
        .replace("  fraction: 0.5", "  fraction: 1.5")
        .replace("  end: 0.1", "  end: 0")
        .replace("  gate: {epochs: 1, ", "  gate: {")
    )
    path = written(tmp_path, text + "name: again\n")
    assert sorted(mistakes(path)) == sorted(
        [
            f"{path}:19: name: found twice, expected once. Remove one.",
            f"{path}:2: seed: found 'one', expected a valid integer.",
            f"{path}:8: data.image_sise: unknown key. Nearest known key: image_size.",
            f"{path}:11: budget.fraction: found 1.5, expected less than or equal to 1.",
            f"{path}:14: tau.end: found 0, expected greater than 0.",
            f"{path}:17: stages.gate.epochs: is missing, expected a value. Add it.",
        ]
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("budget.fraction=0", "budget.fraction: found 0, expected greater than 0."),
        ("budget.fraction=half", "budget.fraction: found 'half', expected a valid number."),
        ("budget.metric=mac", "budget.metric: found 'mac', expected 'macs', 'params', 'latency_ms' or 'memory_mb'."),
        ("tau.end=-1", "tau.end: found -1, expected greater than 0."),
        ("tau.end=3.0", "tau: found end 3.0 above start 2.0, expected tau to decrease."),
        ("tau.start=.inf", "tau.start: found inf, expected a finite number."),
        ("seed=true", "seed: found True, expected a valid integer."),
        ("name=../x", "name: found '../x', expected to match pattern"),
        ("name=..", "name: found '..', expected to match pattern"),
        ("data.batch_size=1", "data.batch_size: found 1, expected greater than or equal to 2."),
        ("budget.fraction=[0.5, 1.5]", "budget.fraction.1: found 1.5, expected less than or equal to 1."),
        ("budget.fraction=[0.25, 0.5]", "budget.fraction: found [0.25, 0.5], expected a decreasing list."),
        ("budget.fraction=[]", "budget.fraction: found [], expected to have at least 1 item after validation, not 0."),
        (
            "data.name=mnist",
            "data.name: found 'mnist', expected digits, fashion_mnist, cifar10, folder, torchvision/<Class>, "
            "timm/<name> or module:function of your own code.",
        ),
        ("data.mixup={cutmix_alfa: 1.0}", "data.mixup.cutmix_alfa: unknown key. Nearest known key: cutmix_alpha."),
        ("data.mixup={label_smoothing: 0.1}", "data.mixup: found label_smoothing 0.1 and nothing to mix, expected"),
        ("data.channels=2", "data.channels: found 2, expected 1 or 3."),
        ("gates.initial_keep_probability=0.5", "expected greater than 0.5."),
        ("gates.exclude=layer4", "gates.exclude: found 'layer4', expected a valid list."),
        ("stages.gate.epochs=0", "stages.gate.epochs: found 0, expected greater than or equal to 1."),
        ("stages.gate.frozen=1", "stages.gate.frozen: found 1, expected less than 1."),
        ("stages.gate.frozen=0.6", "stages.gate: found target_ramp 0.5 and frozen 0.6, expected a sum of at most 1:"),
        ("stages.prune={}", "stages.prune: unknown key. Known keys: dense, gate, finetune."),
        ("budgets.fraction=1", "budgets: unknown key. Nearest known key: budget."),
        ("tau=0.1", "tau: found 0.1, expected"),
        ("seed.x=1", "seed is not a section, so it has no keys to set."),
        ("seed", "expected key.path=value, for example budget.fraction=0.5."),
        ("=1", "expected key.path=value, for example budget.fraction=0.5."),
        ("seed=[", "found '[', expected a value in YAML"),
    ],
)
def test_mistake_is_told_with_the_override_that_made_it(tmp_path: Path, override: str, expected: str) -> None:
    (mistake,) = mistakes(written(tmp_path), override)
    of_two_keys = ("tau.end=3", "stages.gate.frozen=0")  # such a mistake stands where the section does
    if not override.startswith(of_two_keys):
        assert mistake.startswith(f"--set {override.split('.fraction=1')[0]}")
    assert expected in mistake


def test_mistake_within_an_overridden_section_points_to_the_override(tmp_path: Path) -> None:
    assert mistakes(written(tmp_path), "budget={fraction: 2}") == [
        "--set budget={fraction: 2}: budget.fraction: found 2, expected less than or equal to 1."
    ]


def test_overrides_set_values_and_make_sections(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + "output:\n")
    overrides = ["budget.fraction=2.5e-1", "gates.round_to=8", "output.folder=x/y", "seed=3", "seed=4"]
    recipe = load_recipe(path, overrides)
    assert (recipe.budget.fraction, recipe.gates.round_to, recipe.seed) == (0.25, 8, 4)
    assert recipe.folder == Path("x/y")


@pytest.mark.parametrize(("text", "found"), [("", "nothing"), ("- a\n", "list"), ("just text\n", "str")])
def test_file_without_sections_is_refused(tmp_path: Path, text: str, found: str) -> None:
    path = written(tmp_path, text)
    assert mistakes(path) == [f"{path}:1: found {found}, expected a mapping of sections."]


def test_key_that_is_no_text_is_refused_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + "7: x\n")
    assert mistakes(path) == [f"{path}:19: 7: found 7 as a key, expected text. Put it in quotes."]


def test_huge_value_gives_a_short_message(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    path = written(tmp_path, GOOD.replace("seed: 1", "seed: &s [*s]") + bomb)
    lines = mistakes(path, "name=" + "x" * 5000)
    assert len(lines) == 42
    assert max(map(len, lines)) < 6000  # the override itself is repeated in full


@pytest.mark.parametrize(
    ("override", "kind", "expected"),
    [
        ("model.name=timm/test_resne", ModelNameError, "timm has no model 'test_resne'. Nearest: timm/test_resnet"),
        ("model.name=test_resnet", ModelNameError, "expected timm/<name>, torchvision/<name> or prunegate/<name>"),
        ("model.arguments.pretrained=true", ModelNameError, "argument 'pretrained' is refused"),
        ("optimizer.name=sdg", RecipeError, "optimizer.name: timm has no optimiser 'sdg'. Nearest: sgd"),
        ("model.weights=none.safetensors", RecipeError, "model.weights: found no file 'none.safetensors'"),
        ("data.folder=somewhere", DataError, "data.folder: digits come with scikit-learn, expected no folder"),
    ],
)
def test_check_finds_what_is_not_there(tmp_path: Path, override: str, kind: type[Exception], expected: str) -> None:
    recipe = load_recipe(written(tmp_path), [override])
    with pytest.raises(kind, match=re.escape(expected)):
        check_recipe(recipe)


def test_check_tells_all_that_is_not_there(tmp_path: Path) -> None:
    wrong: list[str] = ["model.name=timm/nil", "optimizer.name=nil", "data.folder=nil", "model.weights=nil"]
    recipe = load_recipe(written(tmp_path), wrong)
    with pytest.raises(RecipeError) as caught:
        check_recipe(recipe)
    starts = [line.split(":")[0] for line in str(caught.value).splitlines()]
    assert starts == ["model name", "model.weights", "data.folder", "optimizer.name"]


def test_recipe_does_not_change_once_read(tmp_path: Path) -> None:
    recipe: Any = load_recipe(written(tmp_path))
    with pytest.raises(ValueError, match="frozen"):
        recipe.budget.fraction = 0.9


def test_recipe_is_found_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(RECIPES[0], tmp_path / "mine.yaml")
    monkeypatch.chdir(tmp_path)
    assert load_recipe("mine.yaml") == load_recipe(RECIPES[0])


def test_precision_that_the_machine_lacks_is_refused_with_the_other_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = written(tmp_path)
    with pytest.raises(RecipeError, match=r"^training\.precision: found fp16 .*Set training\.precision=bf16\.$"):
        check_recipe(load_recipe(path, ["training.precision=fp16"]))
    with pytest.raises(RecipeError, match=r"optimizer\.name(.|\n)*training\.precision: found fp16"):
        check_recipe(load_recipe(path, ["training.precision=fp16", "optimizer.name=nosuch"]))
    check_recipe(load_recipe(path, ["training.precision=bf16"]))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            [],
            "stages.dense.epochs: found 0 and no model.weights, expected one of them. Gates would prune a network of ",
        ),
        (["distillation.weight=0.5"], "random weights, and distillation would learn from it. Set the epochs"),
        (["model.name=tests.recipe.test_load:own_net"], "or model.trained=true if that function gives it trained"),
    ],
)
def test_pruning_a_network_of_random_weights_is_refused(tmp_path: Path, overrides: list[str], expected: str) -> None:
    recipe = load_recipe(written(tmp_path), ["stages.dense.epochs=0", *overrides])
    with pytest.raises(RecipeError, match=re.escape(expected)):
        check_recipe(recipe)


def own_net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))


def test_a_function_may_give_the_model_with_trained_weights(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD.replace("  arguments: {in_chans: 1, num_classes: 10}\n", ""))
    own = ["model.name=tests.recipe.test_load:own_net", "model.trained=true", "stages.dense.epochs=0"]
    check_recipe(load_recipe(path, own))
    (line,) = mistakes(path, "model.trained=true")
    assert "model: found trained: true for timm/test_resnet, which is built with random weights, expected" in line


@pytest.mark.parametrize("budget", ["0.25", "[0.5, 0.25]", "{fraction: 0.25}", "1"])
def test_a_number_alone_is_the_budgets_fraction(tmp_path: Path, budget: str) -> None:
    path = written(tmp_path, GOOD.replace("budget:\n  metric: macs\n  fraction: 0.5\n", f"budget: {budget}\n"))
    found = load_recipe(path).budget
    assert found.fractions[-1] == (1.0 if budget == "1" else 0.25)
    assert load_recipe(path, ["budget.fraction=0.3", "budget.metric=params"]).budget.fractions == (0.3,)
    assert load_recipe(written(tmp_path), [f"budget={budget}"]).budget == found


@pytest.mark.parametrize("budget", ["2.0", "-0.5", "half", "true", "[0.25, 0.5]"])
def test_budgets_that_are_no_fraction_are_still_refused(tmp_path: Path, budget: str) -> None:
    lines = mistakes(written(tmp_path), f"budget={budget}")
    assert all(line.startswith(f"--set budget={budget}: budget") for line in lines)


def _bomb(first: str, form: str, levels: int = 12) -> str:
    """Aliases that come to 8 to the power of ``levels`` values, in a few lines."""
    eight = ", ".join(["*{}"] * 8)
    parts = [f"a0: &a0 {first}"]
    parts += [f"a{i}: &a{i} " + form.format(eight.replace("{}", f"a{i - 1}")) for i in range(1, levels)]
    return "{" + ", ".join(parts) + "}"


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ("data", "data: {{name: digits, arguments: {}}}"),
        ("data", "data: {{name: digits, transform: {}}}"),
        ("model", "model: {{name: timm/test_resnet, arguments: {}}}"),
        ("budget", "budget: {}"),
        ("gates", "gates: {{exclude: [{}]}}"),
    ],
)
def test_aliases_that_repeat_each_other_without_end_are_refused_at_once(
    tmp_path: Path, section: str, text: str
) -> None:
    path = written(tmp_path, "name: good\n" + text.format(_bomb("[x]", "[{}]")) + "\n")
    began = time.perf_counter()
    (line,) = mistakes(path)
    assert time.perf_counter() - began < 5
    assert line == (
        f"{path}:2: {section}: its aliases (*name) expand to more than 100,000 values. Write the values out."
    )


def test_aliases_in_moderation_are_fine(tmp_path: Path) -> None:
    text = GOOD.replace("  gate: {epochs: 1, learning_rate: 0.1}", "  gate: &g {epochs: 1, learning_rate: 0.1}")
    path = written(tmp_path, text.replace("  finetune: {epochs: 1, learning_rate: 0.1}", "  finetune: *g"))
    assert load_recipe(path).stages.finetune.epochs == 1


def test_code_of_ones_own_may_import_its_siblings_when_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}_layers.py").write_text("from torch import nn\ndef layers(): return nn.Linear(4, 4)\n")
    (tmp_path / f"{name}.py").write_text(f"def net():\n    from {name}_layers import layers\n    return layers()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    assert isinstance(OwnBuilder(f"{name}:net").build(), torch.nn.Linear)


def test_weights_are_checked_for_fit(tmp_path: Path) -> None:
    builder = Builder.parse("timm/test_resnet", {"in_chans": 1, "num_classes": 10})
    torch.save({"state_dict": builder.build().state_dict()}, tmp_path / "w.pth")
    text = GOOD.replace("  dense: {epochs: 1, learning_rate: 0.1}\n", "")
    recipe = load_recipe(written(tmp_path, text), [f"model.weights={tmp_path / 'w.pth'}"])
    assert recipe.stages.dense.epochs == 0
    check_recipe(recipe)
    changed = ["model.arguments={in_chans: 1, num_classes: 7}", f"model.weights={tmp_path / 'w.pth'}"]
    with pytest.raises(RecipeError, match=r"does not fit the dense model: of another shape: fc\.weight is \(10, "):
        check_recipe(load_recipe(written(tmp_path), changed))


def test_pretrained_is_refused_with_what_to_say_instead(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path), ["model.arguments.pretrained=true"])
    with pytest.raises(
        ModelNameError, match=r"model\.arguments\.pretrained: .*'weights\.pth'.*model\.weights=weights\.pth"
    ):
        check_recipe(recipe)
