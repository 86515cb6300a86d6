"""Saving, and loading in a new process: bit for bit the same outputs, for models of all kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from prunegate.builders import Builder
from prunegate.checkpoint import read_document
from tests.checkpoint.forks import Forks, forks
from tests.checkpoint.models import ARGUMENTS, MODELS, compacted, outputs_of

LOADER = """
import timm, torch, torchvision
import prunegate
from tests.checkpoint.forks import serve
from tests.checkpoint.models import outputs_of
from tests.conftest import SmallNet

def load(file, inputs, out, own):
    model = prunegate.load(file, model=SmallNet if own == "SmallNet" else None, verify=True)
    torch.save(outputs_of(model, torch.load(inputs)), out)

serve(load)
"""


@pytest.fixture(scope="module")
def new_processes() -> Iterator[Forks]:
    """Each has imported what it needs, and loaded nothing before."""
    with forks(LOADER, "-W", "error") as made:
        yield made


@pytest.mark.parametrize("kind", MODELS)
def test_new_process_reproduces_the_saved_model_bit_for_bit(tmp_path: Path, kind: str, new_processes: Forks) -> None:
    name, size, backend = MODELS[kind]
    arguments = ARGUMENTS.get(kind, {})
    result, x = compacted(name, arguments.get("img_size", size), backend, **arguments)
    file = tmp_path / "compact.safetensors"
    # Without arguments the builder is found out from the model itself.
    result.save(file, builder=Builder.parse(name, arguments) if arguments else None)
    expected = outputs_of(result.model, x)
    torch.save(x, tmp_path / "x.pt")
    new_processes.start(str(file), str(tmp_path / "x.pt"), str(tmp_path / "y.pt"), name)
    assert new_processes.next_answer() == 0
    found = torch.load(tmp_path / "y.pt")
    assert len(found) == len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert (read_document(file).builder is None) == (name == "SmallNet")
    assert list(tmp_path.glob(".compact*")) == []
