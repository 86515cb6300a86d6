"""Randomly edited documents with recomputed hashes: a file that loads computes the same as the honest file.

`PRUNEGATE_FUZZ=2000 python -m pytest tests/checkpoint/test_edited_documents.py -n 0` tries as many edits of each file.
"""

from __future__ import annotations

import base64
import copy
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunegate
from prunegate.errors import CheckpointError
from tests.checkpoint.models import compacted_once, outputs_of
from tests.checkpoint.tampering import HOSTILE, joined, parts, places

EDITS = int(os.environ.get("PRUNEGATE_FUZZ", "40"))
# Of each kind of file: the model, the side of its images and the back-end.
FILES = {
    "residual": ("timm/test_resnet", 64, "auto"),
    "transformer": ("timm/test_vit", 160, "auto"),
    "graph": ("timm/test_vit", 160, "graph"),
}
# Arguments that some builders take, of which several leave every shape as it was.
ARGUMENTS: dict[str, list[Any]] = {
    "global_pool": ["max", "avg", "avgmax", "", "token", "map"],
    "act_layer": ["gelu", "silu", "relu", "leaky_relu"],
    "norm_layer": ["groupnorm1", "layernorm", "batchnorm2d"],
    "output_stride": [8, 16],
    "num_classes": [0, 1, 999, 1 << 20],
    "in_chans": [1, 1 << 20],
    "img_size": [128, 320, 1 << 12],
    "num_heads": [1, 2, 4],
    "qkv_bias": [False],
    "class_token": [False],
    "drop_rate": [0.5],
    "pre_norm": [True],
    "dynamic_img_size": [True],
}


class Honest:
    """A good file in its parts, with what its model computes on one input."""

    def __init__(self, folder: Path, name: str, size: int, backend: str) -> None:
        file = folder / "honest.safetensors"
        compacted_once(name, size, backend)[0].save(file)
        self.header, self.document, self.data = parts(file.read_bytes())
        model = prunegate.load(file)
        self.modules = dict(model.named_modules())
        self.x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
        self.outputs = outputs_of(model, self.x)

    def is_computed_by(self, model: nn.Module) -> bool:
        found = outputs_of(model, self.x)
        return len(found) == len(self.outputs) and all(map(torch.equal, found, self.outputs))


@pytest.fixture(scope="module", params=FILES)
def honest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Honest:
    return Honest(tmp_path_factory.mktemp("honest"), *FILES[request.param])


def changed_value(value: Any, rng: random.Random) -> Any:
    """Something near to a value, so that it still parses; or something hostile."""
    if rng.random() < 0.2 or value is None:
        return copy.deepcopy(rng.choice(HOSTILE))
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([value - 1, value + 1, value * 2, value // 2, rng.randrange(64)])
    if isinstance(value, float):
        return rng.choice([value * 1.5, -value, 0.0])
    if isinstance(value, str):
        place = rng.randrange(len(value) + 1)
        return value[:place] + rng.choice("Aa01/.") + value[place + 1 :]
    if isinstance(value, list) and value:
        return rng.sample(value, len(value)) if rng.random() < 0.5 else [*value[1:], *value[:1], value[0]]
    return rng.choice(HOSTILE)


def anywhere(document: dict[str, Any], honest: Honest, rng: random.Random, tree: Any = None) -> None:
    """One entry gets another value or name, or goes."""
    tree = document if tree is None else tree
    path = rng.choice(list(places(tree)))
    owner = tree
    for key in path[:-1]:
        owner = owner[key]
    how = rng.random()
    if how < 0.6:
        owner[path[-1]] = changed_value(owner[path[-1]], rng)
    elif how < 0.8:
        del owner[path[-1]]
    elif isinstance(owner, dict):
        owner[rng.choice([*honest.modules, *owner])] = owner[path[-1]]
    else:
        owner.append(changed_value(owner[path[-1]], rng))


def in_the_plan(document: dict[str, Any], honest: Honest, rng: random.Random) -> None:
    anywhere(document, honest, rng, document["steps"][0]["plan"])


def in_the_attributes(document: dict[str, Any], honest: Honest, rng: random.Random) -> None:
    anywhere(document, honest, rng, document["steps"][0]["plan"]["attributes"])


def another_attribute(document: dict[str, Any], honest: Honest, rng: random.Random) -> None:
    """A size of any module is set to no more than it is."""
    path, module = rng.choice(list(honest.modules.items()))
    sizes = {name: value for name, value in vars(module).items() if type(value) in (int, tuple) and value}
    if not sizes:
        return
    name, value = rng.choice(sorted(sizes.items()))
    new = [max(1, v - rng.randrange(2)) if type(v) is int else 1 for v in value] if type(value) is tuple else None
    edits = document["steps"][0]["plan"]["attributes"].setdefault(path, {})
    edits[name] = rng.randrange(1, max(value, 1) + 1) if new is None else new


def a_mask(document: dict[str, Any], honest: Honest, rng: random.Random) -> None:
    """One or two units more or less, wherever the mask is used."""
    patterns = document["steps"][0]["plan"]["patterns"]
    size, text = pattern = rng.choice(patterns)
    bits = bytearray(base64.b64decode(text))
    for _ in range(rng.randrange(1, 3)):
        place = rng.randrange(size)
        bits[place // 8] ^= 128 >> place % 8
    pattern[1] = base64.b64encode(bytes(bits)).decode()


def two_swapped(document: dict[str, Any], honest: Honest, rng: random.Random) -> None:
    entries = document["steps"][0]["plan"][rng.choice(["groups", "tensors", "attributes"])]
    one, other = rng.sample(sorted(entries), 2)
    entries[one], entries[other] = entries[other], entries[one]


def the_builder(document: dict[str, Any], honest: Honest, rng: random.Random) -> None:
    name = rng.choice(list(ARGUMENTS))
    document["builder"]["arguments"][name] = rng.choice(ARGUMENTS[name])


def what_is_replayed(document: dict[str, Any], honest: Honest, rng: random.Random) -> None:
    step = document["steps"][0]
    fix_ups = step["mending"] or {"graph": False, "replayed": [], "apart": [], "whole_heads": []}
    what = rng.choice(["graph", "replayed", "apart", "whole_heads", "nothing"])
    if what == "graph":
        fix_ups["graph"] = not fix_ups["graph"]
    elif what != "nothing":
        fix_ups[what] = [*fix_ups.get(what, []), rng.choice(list(honest.modules))]
    step["mending"] = None if what == "nothing" else fix_ups


def the_inputs(document: dict[str, Any], honest: Honest, rng: random.Random) -> None:
    """Both places that tell of them are changed alike."""
    inputs = document["steps"][0]["inputs"]
    anywhere(document, honest, rng, inputs)
    document["fingerprint"]["inputs"] = copy.deepcopy(inputs)


def what_is_compared(document: dict[str, Any], honest: Honest, rng: random.Random) -> None:
    """The file is made poorer, up to what the first format had, and changed once more."""
    what = rng.choice(["structure_sha256", "fingerprint", "versions", "version"])
    if what == "version":
        document["version"] = "1.0"
        del document["structure_sha256"], document["document_sha256"]
    elif what == "versions":
        document["versions"]["torch"] = "1.0"
    else:
        del document[what]
    rng.choice([the_builder, another_attribute, in_the_plan])(document, honest, rng)


WAYS: list[Callable[[dict[str, Any], Honest, random.Random], None]] = [
    *[anywhere, in_the_plan, in_the_attributes] * 3,
    *[another_attribute, a_mask, two_swapped, the_builder, what_is_replayed, the_inputs, what_is_compared],
]


def test_edited_documents_are_refused_or_compute_the_same(honest: Honest, tmp_path: Path) -> None:
    rng, file = random.Random(0), tmp_path / "edited.safetensors"
    refused = 0
    for _ in range(EDITS):
        document = copy.deepcopy(honest.document)
        told = []
        for way in rng.choices(WAYS, k=rng.choice([1, 1, 1, 2])):
            told.append(way.__name__)
            try:
                way(document, honest, rng)
            except (KeyError, IndexError, TypeError, ValueError, AttributeError):  # of what the first left
                continue
        file.write_bytes(joined(honest.header, document, honest.data))
        try:
            model = prunegate.load(file)
        except CheckpointError:
            refused += 1
            continue
        assert honest.is_computed_by(model), f"{told}: {document}"[:2000]
    assert refused > EDITS / 2
