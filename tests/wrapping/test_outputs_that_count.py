"""`wrap(..., outputs=...)`: what a model returns besides what counts does not keep its channels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunegate
from prunegate.errors import TraceError
from tests.conftest import random_masks, randomise
from tests.wrapping.exactness import noise, units


@dataclass
class Output:
    logits: torch.Tensor
    states: tuple[torch.Tensor, ...]


class Encoder(nn.Module):
    """Returns its residual stream after every block, as vision encoders of transformers do."""

    def __init__(self, form: str = "dataclass") -> None:
        super().__init__()
        self.form = form
        self.stem, self.head = nn.Linear(5, 12), nn.Linear(12, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 12)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> Any:
        x = self.stem(x)
        states = [x]
        for block in self.blocks:
            x = x + block(x)
            states.append(x)
        logits = self.head(x)
        if self.form == "dataclass":
            return Output(logits, tuple(states))
        return {"logits": logits, "states": tuple(states)} if self.form == "dict" else (logits, *states)


CHOICES: dict[str, tuple[str, Any]] = {
    "function over a dataclass": ("dataclass", lambda out: out.logits),
    "function over a dict": ("dict", lambda out: out["logits"]),
    "function over a tuple": ("tuple", lambda out: out[0]),
    "name": ("dataclass", "logits"),
    "names": ("dict", ["logits"]),
    "place": ("tuple", "[0]"),
}


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("backend", ["auto", "graph"])
def test_the_stream_may_shrink_where_it_is_only_returned_besides(name: str, backend: str, tmp_path: Path) -> None:
    form, outputs = CHOICES[name]
    model = randomise(Encoder(form)).double().eval()
    assert units(prunegate.wrap(model, noise(2, 5), backend=backend)) == {"blocks.0.0": 16, "blocks.1.0": 16}
    gated = prunegate.wrap(model, noise(2, 5), backend=backend, outputs=outputs)
    assert units(gated) == {"stem": 12, "blocks.0.0": 16, "blocks.1.0": 16}
    assert any("only " in str(limit) and "is preserved" in str(limit) for limit in gated.limits)
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    result = prunegate.compact(gated)

    def pick(out: Any) -> torch.Tensor:
        if isinstance(out, Output):
            return out.logits
        first: torch.Tensor = out["logits"] if isinstance(out, dict) else out[0]
        return first

    with torch.no_grad():
        torch.testing.assert_close(
            pick(result.model(noise(3, 5))), pick(gated.eval()(noise(3, 5))), rtol=1e-9, atol=1e-12
        )
    path = tmp_path / "compact.safetensors"
    result.save(path)
    loaded = prunegate.load(path, model=Encoder(form))
    with torch.no_grad():
        assert torch.equal(pick(loaded.double()(noise(3, 5))), pick(result.model(noise(3, 5))))


def test_several_outputs_may_count() -> None:
    gated = prunegate.wrap(randomise(Encoder()), noise(2, 5).float(), outputs=lambda out: [out.logits, out.states[0]])
    assert units(gated) == {"blocks.0.0": 16, "blocks.1.0": 16}
    assert units(prunegate.wrap(Encoder(), noise(2, 5).float(), outputs=["logits", "states"])) == units(gated)


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        ("scores", r"the model has no output 'scores'. The outputs are: \.logits, \.states\[0\]"),
        (lambda out: out.scores, "the function failed on the model's output with AttributeError"),
        (lambda out: out.logits + 1, "the function returns new tensors. It has to return tensors of"),
        (lambda out: None, "nothing was chosen, expected at least one tensor"),
        ([], "nothing was chosen, expected at least one tensor"),
        (0, "found 0, expected names such as"),
        ([0], r"found \[0\], expected names such as"),
    ],
)
def test_a_choice_that_finds_nothing_is_refused_with_what_there_is(outputs: Any, told: str) -> None:
    with pytest.raises(TraceError, match=told):
        prunegate.wrap(Encoder(), noise(2, 5).float(), outputs=outputs)


class Detector(nn.Module):
    """Returns an object of another form in training mode: what the loss reads, and the head's input besides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.neck, self.head = nn.Linear(5, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> Any:
        states = self.neck(self.stem(x).relu())
        raw = {"logits": self.head(states.relu()), "states": states}
        return raw if self.training else (raw["logits"].softmax(-1), raw)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ("[0]", {"stem": 12}),
        (lambda out: out[0], {"stem": 12}),
        (["[0]", "logits"], {"stem": 12, "neck": 8}),
        (lambda out: out["logits"] if isinstance(out, dict) else out[0], {"stem": 12, "neck": 8}),
    ],
    ids=["a place of eval mode", "a function for eval mode", "names of both modes", "a function for both modes"],
)
def test_all_that_training_returns_counts_unless_the_choice_is_found_there(outputs: Any, expected: Any) -> None:
    """A comparison in training mode that found no output to compare would pass whatever was cut."""
    gated = prunegate.wrap(randomise(Detector()).double(), noise(2, 5), outputs=outputs)
    assert units(gated) == expected
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    compact = prunegate.compact(gated).model.train()
    with torch.no_grad():
        one, other = gated.train()(noise(3, 5)), compact(noise(3, 5))
    for name in one if "neck" not in expected else ("logits",):
        torch.testing.assert_close(one[name], other[name], rtol=1e-9, atol=1e-12)


class ReturnsMoreInTraining(Detector):
    """Calls the same functions in either mode, but returns more in training."""

    def forward(self, x: torch.Tensor) -> Any:
        states = self.neck(self.stem(x).relu())
        logits = self.head(states.relu())
        return (logits, states) if self.training else logits


def test_what_training_alone_returns_is_preserved() -> None:
    gated = prunegate.wrap(randomise(ReturnsMoreInTraining()).double(), noise(2, 5))
    assert units(gated) == {"stem": 12}
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    assert prunegate.compact(gated).model.train()(noise(3, 5))[1].shape == (3, 8)
