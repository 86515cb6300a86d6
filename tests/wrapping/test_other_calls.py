"""Calls beside the example inputs: other arguments and sizes that make a model's code take another branch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunegate
from prunegate.groups import ExampleInputs
from tests.conftest import random_masks, randomise
from tests.wrapping.exactness import noise


class _Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 12), nn.Linear(12, 3)


class BranchesOnLength(_Layers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        if y.shape[1] % 2:
            y = y - y.mean(-1, keepdim=True)
        return self.last(y)


class BranchesOnArgument(_Layers):
    def forward(self, x: torch.Tensor, center: bool = False) -> torch.Tensor:
        y = self.first(x)
        return self.last(y - y.amax(-1, keepdim=True) if center else y)


class BranchesOnMask(_Layers):
    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        y = self.first(x)
        if mask is not None:
            y = y.masked_fill(mask[..., None], 0.0)
            y = nn.functional.layer_norm(y, (12,))
        return self.last(y)


class TrainsOnLabels(_Layers):
    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        y = self.first(x)
        out = self.last(y.relu())
        if labels is None:
            return {"out": out}
        spread = y.softmax(-1).square().sum(-1).mean()
        return {"out": out, "loss": (out - labels).square().mean() + spread}


class BranchesInTraining(_Layers):
    def forward(self, x: torch.Tensor, m: bool = False) -> torch.Tensor:
        y = self.first(x)
        if self.training and m:
            y = y.softmax(-1)
        return self.last(y)


CASES: list[tuple[type[nn.Module], dict[str, Any]]] = [
    (BranchesOnLength, {"x": noise(2, 7, 8)}),
    (BranchesOnArgument, {"x": noise(2, 6, 8), "center": True}),
    (BranchesOnMask, {"x": noise(2, 6, 8), "mask": torch.arange(12).reshape(2, 6) % 3 == 0}),
    (TrainsOnLabels, {"x": noise(2, 6, 8), "labels": noise(2, 6, 3)}),
]


def gated_of(model: nn.Module, **options: Any) -> prunegate.GatedModel:
    gated = prunegate.wrap(randomise(model).double().eval(), noise(2, 6, 8), **options)
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    return gated


def apart(one: Any, other: Any) -> float:
    if isinstance(one, dict):
        return max(apart(one[name], other[name]) for name in one)
    return float((one - other).detach().abs().max() / one.detach().abs().max())


@pytest.mark.parametrize(("kind", "call"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_call_that_is_named_is_followed_and_compared(kind: type[nn.Module], call: dict[str, Any]) -> None:
    gated = gated_of(kind(), other_calls=[call])
    assert not gated.limits
    result = prunegate.compact(gated)
    assert {"eval mode, other_calls[0], with gradients", "training mode, other_calls[0], with gradients"} <= set(
        result.certificate.checked
    )
    for mode in (True, False):
        assert apart(gated.train(mode)(**call), result.model.train(mode)(**call)) < 1e-12


@pytest.mark.parametrize(("kind", "call"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_branch_that_no_run_took_is_told_with_its_line_and_the_cure(
    kind: type[nn.Module], call: dict[str, Any]
) -> None:
    told = [str(limit) for limit in gated_of(kind()).limits]
    assert len(told) == 1
    assert "test_other_calls.py, line" in told[0]
    assert "other_calls=[...]" in told[0]


class Forms(_Layers):
    """One branch, in many spellings."""

    def __init__(self) -> None:
        super().__init__()
        self.softmax, self.extra, self.on = nn.Softmax(-1), nn.Linear(12, 12), False

    def flipped(self, y: torch.Tensor) -> torch.Tensor:
        return y.flip(-1)

    def forward(self, x: torch.Tensor, m: bool = False) -> torch.Tensor:
        return self.last(self.step(self.first(x), x, m))

    def step(self, y: torch.Tensor, x: torch.Tensor, m: bool) -> torch.Tensor:
        return y

    def slices(self, y: torch.Tensor, x: torch.Tensor, m: bool) -> torch.Tensor:
        return y + y[..., :1] if m else y

    def layer(self, y: torch.Tensor, x: torch.Tensor, m: bool) -> torch.Tensor:
        return self.softmax(y) if m else y

    def weights(self, y: torch.Tensor, x: torch.Tensor, m: bool) -> torch.Tensor:
        if m:
            return self.extra(y)
        return y

    def method(self, y: torch.Tensor, x: torch.Tensor, m: bool) -> torch.Tensor:
        return self.flipped(y) if m else y

    def loop(self, y: torch.Tensor, x: torch.Tensor, m: bool) -> torch.Tensor:
        for _ in range(x.shape[1] // 97):
            y = y.flip(-1)
        return y

    def short_circuit(self, y: torch.Tensor, x: torch.Tensor, m: bool) -> torch.Tensor:
        return y - ((m and y.amax(-1, keepdim=True)) or 0.0)

    def values(self, y: torch.Tensor, x: torch.Tensor, m: bool) -> torch.Tensor:
        if bool(y.abs().max() > 1e9):
            y = y.flip(-1)
        return y

    def chosen(self, y: torch.Tensor, x: torch.Tensor, m: bool) -> torch.Tensor:
        f = torch.softmax if m else torch.clamp
        return f(y, -1)

    def kept_for_later(self, y: torch.Tensor, x: torch.Tensor, m: bool) -> torch.Tensor:
        self.on = m
        return self.reads_later(y)

    def reads_later(self, y: torch.Tensor) -> torch.Tensor:
        return y.softmax(-1) if self.on else y

    def dimension(self, y: torch.Tensor, x: torch.Tensor, m: bool) -> torch.Tensor:
        return y - y.mean(dim=-1 if m else 1, keepdim=True)


_FORMS = "slices layer weights method loop short_circuit values chosen kept_for_later dimension".split()


@pytest.mark.parametrize("form", _FORMS)
def test_a_branch_is_told_however_it_is_spelled(form: str) -> None:
    kind: type[nn.Module] = type(form, (Forms,), {"step": getattr(Forms, form)})
    assert any("other_calls=[...]" in str(limit) for limit in gated_of(kind()).limits)


def test_calls_of_another_length_are_rewritten_too() -> None:
    class Literal(_Layers):
        def forward(self, x: torch.Tensor, flat: bool = False) -> torch.Tensor:
            y = self.first(x)
            if flat:
                y = y.reshape(-1, 12).sum(0, keepdim=True)
            return self.last(y)

    gated = gated_of(Literal(), other_calls=[{"x": noise(3, 5, 8), "flat": True}])
    result = prunegate.compact(gated)
    assert not gated.limits
    for given in ({"x": noise(2, 9, 8)}, {"x": noise(4, 7, 8), "flat": True}):
        assert apart(gated(**given), result.model(**given)) < 1e-12


def test_what_another_call_does_in_training_is_followed() -> None:
    gated = gated_of(BranchesInTraining(), other_calls=[{"x": noise(2, 6, 8), "m": True}])
    result = prunegate.compact(gated)
    given = {"x": noise(3, 5, 8), "m": True}
    assert apart(gated.train()(**given), result.model.train()(**given)) < 1e-12


def test_other_calls_are_in_the_file(tmp_path: Path) -> None:
    kind, call = CASES[2]
    result = prunegate.compact(gated_of(kind(), other_calls=[call], outputs=lambda out: out))
    result.save(tmp_path / "compact.safetensors")
    loaded = prunegate.load(tmp_path / "compact.safetensors", model=kind().double(), verify=True)
    assert torch.equal(loaded(**call), result.model.eval()(**call))


def test_the_form_of_other_calls_is_read_back() -> None:
    inputs = ExampleInputs((noise(2, 3),), {}, ("out",), (ExampleInputs((), {"x": noise(4, 3)}, ("out",)),))
    read = ExampleInputs.of_form(inputs.describe())
    assert read.outputs == ("out",)
    assert read.others[0].outputs == ("out",)
    assert read.others[0].kwargs["x"].shape == (4, 3)
    assert ExampleInputs.of_form(ExampleInputs((noise(2, 3),), {}).describe()).others == ()


def test_a_branch_on_the_number_of_samples_is_followed() -> None:
    class Counts(_Layers):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            if len(x) > 2:
                y = y - y.mean(-1, keepdim=True)
            return self.last(y)

    gated = gated_of(Counts())
    result = prunegate.compact(gated)
    assert not gated.limits
    assert apart(gated(noise(5, 6, 8)), result.model(noise(5, 6, 8))) < 1e-12


class ConditionsOnConfiguration(_Layers):
    """What a module was built with does not change from call to call, nor do masks and sizes hold channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_first, self.blocks = False, nn.ModuleList([nn.ReLU(), nn.Tanh()])

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if self.norm_first:
            x = x - x.mean(-1, keepdim=True)
        y = self.first(x)
        if mask is not None and mask.sum(-1).min() > 1:
            y = y * mask[..., None].cumsum(1)
        for block in self.blocks:
            y = block(y) if mask is None else block(y) * mask[..., None]
        if self.norm_first:
            y = y.softmax(-1)
        if y.device.type == "cuda":
            y = y.softmax(-1)
        return self.last(y)


def test_what_cannot_change_or_holds_no_channels_is_not_told() -> None:
    assert not gated_of(ConditionsOnConfiguration()).limits


@pytest.mark.parametrize(
    ("other_calls", "message"),
    [
        (noise(2, 6, 8), "other_calls: found Tensor, expected a list of calls"),
        ([{"x": 3}], r"other_calls\[0\]: example_inputs: found no tensor"),
        ([(noise(2, 6, 8),), (noise(2, 6, 5),)], r"other_calls\[1\]: .*"),
    ],
)
def test_calls_that_cannot_be_made_are_named(other_calls: Any, message: str) -> None:
    with pytest.raises(prunegate.errors.TraceError, match=message):
        gated_of(BranchesOnLength(), other_calls=other_calls)
