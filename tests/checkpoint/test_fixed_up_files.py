"""Files of models with fixed-up forwards: narrow attention, rewritten sizes in calls, replayed modules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import prunegate
from prunegate.checkpoint import read_document
from prunegate.checkpoint.structure import structure_of
from prunegate.errors import CheckpointError
from tests.checkpoint.models import rewritten
from tests.conftest import random_masks, randomise


class Encoder(nn.Module):
    """Torch's own attention, whose heads and stream are cut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(10, 32)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 24, 0.0, batch_first=True), 2)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.encoder(self.stem(x)).mean(1))
        return y


class Literal(nn.Module):
    """Code that names a size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 24), nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.second(torch.relu(self.first(x)).reshape(*x.shape[:2], 24))
        return y


class Sized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Literal(), nn.Linear(10, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.block(x).mean(1))
        return y


class Lengths(nn.Module):
    """Shapes that depend on values, and a size in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 10)
        self.layer = nn.GRU(10, 8, bidirectional=True, batch_first=True)
        self.last = nn.Linear(16, 3)

    def forward(self, words: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(self.embed(words), lengths, batch_first=True, enforce_sorted=False)
        return self.last(self.layer(packed)[1].permute(1, 0, 2).reshape(-1, 16))


ATTENTION = [f"encoder.layers.{number}.self_attn" for number in range(2)]


def made(kind: type[nn.Module], share: float = 0.5, **fix_ups: Any) -> tuple[prunegate.Compaction, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 10)
    gated = prunegate.wrap(randomise(kind()).eval(), x)
    gated.fix_ups = replace(gated.fix_ups, **fix_ups)
    gated.set_masks(random_masks(gated.groups, share, 0))
    return prunegate.compact(gated), x


@pytest.mark.parametrize("kind", [Encoder, Sized])
@pytest.mark.parametrize("verify", [False, True])
def test_a_fixed_up_model_is_loaded_bit_for_bit_and_with_its_structure(
    tmp_path: Path, kind: type[nn.Module], verify: bool
) -> None:
    result, x = made(kind)
    assert not result.fix_ups.replays
    file = tmp_path / "c.safetensors"
    result.save(file)
    loaded = prunegate.load(file, model=kind, verify=verify)
    assert structure_of(loaded) == read_document(file).structure_sha256
    assert torch.equal(loaded(x), result.model.eval()(x))


def test_a_fixed_up_model_whose_shapes_depend_on_values_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = (torch.randint(0, 9, (3, 6)), torch.tensor([6, 4, 1]))
    gated = prunegate.wrap(randomise(Lengths()).eval(), inputs)
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    result = prunegate.compact(gated)
    assert not result.fix_ups.is_plain
    result.save(tmp_path / "c.safetensors")
    loaded = prunegate.load(tmp_path / "c.safetensors", model=Lengths, verify=True)
    assert torch.equal(loaded(*inputs), result.model.eval()(*inputs))


@pytest.mark.parametrize("kind", [Encoder, Sized])
def test_a_fixed_up_model_that_was_cut_again_is_loaded_bit_for_bit(tmp_path: Path, kind: type[nn.Module]) -> None:
    """Of the attention that is left, places within heads go then."""
    once, x = made(kind)
    gated = prunegate.wrap(once.model.eval(), x)
    gated.set_masks(random_masks(gated.groups, 0.6, 3))
    twice = prunegate.compact(gated)
    file = tmp_path / "c.safetensors"
    twice.save(file)
    loaded = prunegate.load(file, model=kind)
    assert structure_of(loaded) == read_document(file).structure_sha256
    assert torch.equal(loaded(x), twice.model.eval()(x))


def test_an_encoder_of_which_nothing_is_removed_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    result, _ = made(Encoder, 1.0)
    assert result.plan.removes_nothing
    file = tmp_path / "c.safetensors"
    result.save(file)
    assert structure_of(prunegate.load(file, model=Encoder)) == read_document(file).structure_sha256


def test_the_sizes_of_attention_are_told_even_where_they_stay() -> None:
    """By these the loader knows that the layer does not run torch's forward."""
    result, _ = made(Encoder)
    kept = [len(result.plan.kept[f"{path}.in_proj_weight"]) for path in ATTENTION]
    assert 4 in kept
    for path, heads in zip(ATTENTION, kept, strict=True):
        told = result.plan.attributes[path]
        assert told["num_heads"] == heads
        assert told["head_dim"] == 8


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another number of heads": lambda sizes: sizes.update(num_heads=1),
    "other heads": lambda sizes: sizes.update(head_dim=4),
    "another width": lambda sizes: sizes.update(embed_dim=sizes["embed_dim"] + 1),
    "dense width": lambda sizes: sizes.pop("embed_dim"),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_sizes_of_attention_that_its_weights_do_not_have_are_refused(
    tmp_path: Path, edit: Callable[[dict[str, Any]], Any]
) -> None:
    file = tmp_path / "c.safetensors"
    made(Encoder)[0].save(file)
    rewritten(file, lambda document: edit(document["steps"][0]["plan"]["attributes"][ATTENTION[1]]))
    with pytest.raises(
        CheckpointError, match=r"layers\.1\.self_attn\.\w+: found .*by the tensors that the plan leaves"
    ):
        prunegate.load(file, model=Encoder)


def _as_of_1_0(document: dict[str, Any]) -> None:
    """Before torch's attention had a forward for fewer heads, its sizes stayed and it was replayed."""
    document["version"] = "1.0"
    for since in ("document_sha256", "structure_sha256", "versions"):
        del document[since]
    for step in document["steps"]:
        for path in ATTENTION:
            del step["plan"]["attributes"][path]
        if step["mending"] is not None:
            del step["mending"]["resized"]


@pytest.mark.parametrize("fix_ups", [{"replayed": tuple(ATTENTION)}, {"graph": True}], ids=["module", "graph"])
def test_files_of_1_0_that_replay_attention_are_loaded(tmp_path: Path, fix_ups: dict[str, Any]) -> None:
    result, x = made(Encoder, **fix_ups)
    assert result.fix_ups.replays
    file = tmp_path / "c.safetensors"
    result.save(file)
    expected = result.model.eval()(x)
    assert torch.equal(prunegate.load(file, model=Encoder)(x), expected)
    rewritten(file, _as_of_1_0, reseal=False)
    loaded = prunegate.load(file, model=Encoder)
    assert torch.equal(loaded(x), expected)
    if not result.fix_ups.graph:
        assert loaded.get_submodule(ATTENTION[1]).num_heads == 4


@pytest.mark.parametrize(("kind", "path", "attribute"), [
    (Encoder, ATTENTION[1], "_prunegate_heads"), (Sized, "block", "_prunegate_sizes"),
])  # fmt: skip
def test_the_structure_covers_what_a_forward_was_made_with(kind: type[nn.Module], path: str, attribute: str) -> None:
    model = made(kind)[0].model
    before, module = structure_of(model), model.get_submodule(path)
    present = getattr(module, attribute)
    assert present
    setattr(module, attribute, present._replace(dense_width=9) if kind is Encoder else ())
    assert structure_of(model) != before
    setattr(module, attribute, present)
    assert structure_of(model) == before


def test_the_structure_is_the_same_in_another_process() -> None:
    code = (
        "import json; from prunegate.checkpoint.structure import structure_of; "
        "from tests.checkpoint.test_fixed_up_files import *; "
        "print(json.dumps([structure_of(made(k)[0].model) for k in (Encoder, Sized)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "5"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [structure_of(made(kind)[0].model) for kind in (Encoder, Sized)]
