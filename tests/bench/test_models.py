"""Which models a file, a run and a name stand for, and which inputs they are run on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml

import prunegate
from prunegate.bench import Contender, Gathering
from prunegate.builders import Builder
from prunegate.errors import BenchError, PrunegateError
from prunegate.own_code import OwnBuilder
from prunegate.runtimes import described
from tests.bench.made import Net
from tests.conftest import random_masks, randomise

NAME, ARGUMENTS = "timm/test_resnet", {"in_chans": 1, "num_classes": 10}
OWN = OwnBuilder("tests.bench.made:Net", {"width": 8})


def compact_file(path: Path, builder: Builder | OwnBuilder, channels: int) -> Path:
    gated = prunegate.wrap(randomise(builder.build()).eval(), torch.zeros(1, channels, 16, 16))
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    prunegate.compact(gated).save(path, builder=builder if isinstance(builder, Builder) else None)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compact_file(tmp_path_factory.mktemp("file") / "small.safetensors", Builder.parse(NAME, ARGUMENTS), 1)


@pytest.fixture(scope="module")
def own_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compact_file(tmp_path_factory.mktemp("own") / "own.safetensors", OWN, 3)


def gathered(texts: Sequence[object], gathering: Gathering | None = None) -> tuple[list[Contender], str, list[str]]:
    gathering = gathering or Gathering()
    for text in texts:
        gathering.add(str(text))
    models, inputs, notes = gathering.finish()
    return models, described(inputs), notes


def test_a_file_comes_with_its_dense_model_and_the_inputs_it_was_pruned_with(file: Path) -> None:
    (dense, compact), inputs, notes = gathered([file])
    assert (dense.name, dense.dense) == (NAME, None)
    assert (compact.name, compact.dense, compact.source) == ("small", NAME, str(file))
    assert inputs == "1×16×16"
    assert not notes
    count = [sum(p.numel() for p in one.model.parameters()) for one in (dense, compact)]
    assert count[1] < count[0]
    assert not compact.model.training
    assert not dense.model.training


def test_a_dense_model_that_is_also_named_is_measured_once(file: Path) -> None:
    models, _, _ = gathered([file, NAME], Gathering(arguments=ARGUMENTS))
    assert [one.name for one in models] == [NAME, "small"]
    others, _, _ = gathered([file, NAME])  # with other arguments it is another model
    assert [one.name for one in others] == [NAME, "small", f"{NAME} (2)"]


def test_a_run_has_its_dense_weights_and_a_model_for_each_budget(file: Path, tmp_path: Path) -> None:
    run = tmp_path / "tiny"
    run.mkdir()
    for name in ("compact", "compact-0.5", "compact-0.25"):
        (run / f"{name}.safetensors").write_bytes(file.read_bytes())
    weights = randomise(Builder.parse(NAME, ARGUMENTS).build(), 3).state_dict()
    from safetensors.torch import save_file

    save_file(weights, run / "dense.safetensors")
    models, _, _ = gathered([run])
    assert [one.name for one in models] == [NAME, "tiny/compact-0.5", "tiny/compact-0.25", "tiny/compact"]
    assert torch.equal(models[0].model.state_dict()["fc.weight"], weights["fc.weight"])


def test_a_run_of_an_own_model_is_built_by_its_recipe(own_file: Path, tmp_path: Path) -> None:
    recipe = {
        "name": "own",
        "model": {"name": OWN.name, "arguments": dict(OWN.arguments)},
        "data": {"name": "digits"},
        "stages": {stage: {"epochs": 1, "learning_rate": 0.1} for stage in ("dense", "gate", "finetune")},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "compact.safetensors").write_bytes(own_file.read_bytes())
    models, inputs, _ = gathered([tmp_path])
    assert [one.dense for one in models] == [None, OWN.name]
    assert inputs == "3×16×16"


def test_a_file_of_an_own_model_needs_the_code_that_makes_it(own_file: Path) -> None:
    with pytest.raises(BenchError, match="code is never loaded from a file"):
        gathered([own_file])
    models, _, _ = gathered([own_file], Gathering(OWN))
    assert [type(one.model) for one in models] == [Net, Net]


def test_inputs_are_those_given_else_of_a_file_else_of_a_model(file: Path) -> None:
    assert gathered([NAME])[1] == "3×160×160"
    assert gathered([NAME, file])[1] == "1×16×16"
    _, inputs, notes = gathered([file], Gathering(input_size=(1, 32, 32)))
    assert inputs == "1×32×32"
    assert notes == ["small was pruned with inputs of 1×16×16."]
    with pytest.raises(BenchError, match="--input-size: is missing, expected the shape of one sample"):
        gathered([OWN.name])


def test_files_of_the_same_name_are_shown_with_their_folders(file: Path, tmp_path: Path) -> None:
    other = tmp_path / file.name
    other.write_bytes(file.read_bytes())
    models, _, _ = gathered([file, other])
    assert [one.name for one in models] == [NAME, "small", str(other)]
    with pytest.raises(BenchError, match="is given twice, expected each once"):
        gathered([file, other, other])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("runs/none", "runs/none: is no file and no folder; as a model: model name: found 'runs/none'"),
        ("timm/test_resne", "Nearest: timm/test_resnet"),
        ("none.safetensors", "none.safetensors"),
        (".", "contains no compact.safetensors, expected the folder of a finished run"),
        ("no_such_module:make", "cannot be imported"),
    ],
)
def test_what_does_not_exist_is_refused(
    text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PrunegateError) as error:
        gathered([text])
    assert expected in str(error.value)
