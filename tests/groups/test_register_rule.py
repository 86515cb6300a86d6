"""Users' rules for their own operations and modules."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import prunegate
from prunegate.groups import Call
from prunegate.groups.rules.register import MODULE_RULES, OPERATION_RULES
from prunegate.groups.solving.labels import Labels


@torch.library.custom_op("prunegate_test::shifted_relu", mutates_args=())
def shifted_relu(x: torch.Tensor) -> torch.Tensor:
    return x.add(1).relu()


@shifted_relu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Activation(nn.Module):
    """Something with a scale for each channel, computed in a way that no rule sees through."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = shifted_relu(x)
        return y * self.scale


class Net(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first, self.activation, self.last = nn.Linear(6, 16), activation, nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.activation(self.first(x)))
        return y


@pytest.fixture(autouse=True)
def _forget_rules() -> Iterator[None]:
    yield
    OPERATION_RULES.clear()
    MODULE_RULES.clear()


def _prunes_without_loss(model: nn.Module) -> None:
    gated = prunegate.wrap(model, torch.randn(4, 6))
    assert [group.name for group in gated.groups] == ["first"]
    mask = torch.arange(16) % 3 != 0
    gated.set_masks({"first": mask})
    compact = prunegate.compact(gated)
    assert compact.certificate.float64.max_rel <= 1e-12
    assert compact.model.activation.scale.shape == (10,)


def test_an_unknown_operation_pins_until_it_has_a_rule() -> None:
    model = Net(Activation(16))
    with pytest.raises(prunegate.NothingToPruneError, match="no rule says what this operation does"):
        prunegate.wrap(model, torch.randn(4, 6))
    prunegate.register_rule("prunegate_test::shifted_relu", like="relu")
    _prunes_without_loss(model)


def test_a_module_class_has_a_rule_of_its_own() -> None:
    @prunegate.register_rule(Activation)
    def per_channel(call: Call) -> list[Labels]:
        labels = call.labels_of(call.tensor("x"))
        for label in labels:
            call.constraints.tie(label.reshape(-1), call.labels_of(call.tensor("scale"))[0])
        return [labels]

    _prunes_without_loss(Net(Activation(16)))


def test_a_wrong_rule_is_found_out_and_refused() -> None:
    """The dry run in `wrap` compares, so that nobody's rule can make a compact model that computes otherwise."""

    class Mixing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.cumsum(-1)

    prunegate.register_rule(Mixing, lambda call: [call.labels_of(call.tensor("x"))])
    with pytest.raises(prunegate.NothingToPruneError, match="computes something else than the masked model"):
        prunegate.wrap(Net(Mixing()), torch.randn(4, 6))


@pytest.mark.parametrize(
    ("target", "like", "said"),
    [
        ("shifted_relu", None, "expected a full name such as"),
        (3, None, "expected the full name of an operation or a subclass"),
        ("prunegate_test::shifted_relu", "frobnicate", "expected one of the operations that have a rule"),
    ],
)
def test_what_cannot_be_registered_says_why(target: object, like: str | None, said: str) -> None:
    with pytest.raises(prunegate.TraceError, match=said):
        prunegate.register_rule(target, like=like)  # type: ignore[arg-type]


# --- The page of register_rule, as it is written -------------------------------------------------------------------


@torch.library.custom_op("mylib::scaled_relu", mutates_args=())
def scaled_relu(x: torch.Tensor) -> torch.Tensor:
    return x.mul(2).relu()


@torch.library.custom_op("mylib::scaled", mutates_args=())
def scaled(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x * scale[:, None]


@torch.library.custom_op("mylib::project", mutates_args=())
def project(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight.T


scaled_relu.register_fake(torch.empty_like)
scaled.register_fake(lambda x, scale: torch.empty_like(x))
project.register_fake(lambda x, weight: x.new_empty(*x.shape[:-1], len(weight)))
mylib = SimpleNamespace(scaled_relu=scaled_relu, scaled=scaled, project=project)


class Scale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = mylib.scaled(x, self.scale)
        return y


class Projection(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = mylib.project(x, self.weight)
        return y


class OfMylib(nn.Module):
    """Convolution, scale, custom activation, and two projections over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale = nn.Conv1d(3, 12, 3), Scale(12)
        self.one, self.two = Projection(12, 10), Projection(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = mylib.scaled_relu(self.scale(self.first(x)))
        y: torch.Tensor = self.two(torch.tanh(self.one(x.transpose(1, 2)))).mean(1)
        return y


def examples() -> list[str]:
    """The code blocks of the docstring."""
    page = inspect.getdoc(prunegate.register_rule) or ""
    return [textwrap.dedent(block) for block in re.findall(r"::\n\n((?:    .*\n|\n)+)", page)]


def test_the_page_teaches_what_it_says() -> None:
    blocks = examples()
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "register_rule.__doc__", "exec"), {"prunegate": prunegate, **globals()})
    torch.manual_seed(0)
    gated = prunegate.wrap(OfMylib(), torch.randn(4, 3, 9))
    assert {group.name: group.num_units for group in gated.groups} == {"first": 12, "one": 10}
    members = {(member.tensor, member.axis) for member in gated.groups[0].members}
    assert {("first.weight", 0), ("scale.scale", 0), ("one.weight", 1)} <= members
    assert gated.dense_cost("macs") == 12 * 3 * 3 * 7 + 7 * (12 * 10 + 10 * 4)
    gated.set_masks({"first": torch.arange(12) % 3 != 0, "one": torch.arange(10) % 2 == 0})
    result = prunegate.compact(gated)
    assert result.certificate.float64.max_rel <= 1e-12
    assert result.model.one.weight.shape == (5, 8)
    assert result.model.scale.scale.shape == (8,)
    assert result.costs["macs"]["compact"] == 8 * 3 * 3 * 7 + 7 * (8 * 5 + 5 * 4)


def test_the_refusal_prints_the_call_to_make() -> None:
    with pytest.raises(prunegate.NothingToPruneError) as raised:
        prunegate.wrap(Net(Activation(16)), torch.randn(4, 6))
    said = str(raised.value)
    assert "no rule says what this operation does to channels: prunegate_test::shifted_relu" in said
    assert "call prunegate.register_rule('prunegate_test::shifted_relu', like='relu')" in said
    exec(re.findall(r"call (prunegate.register_rule\(.*?\))", said)[0], {"prunegate": prunegate})
    _prunes_without_loss(Net(Activation(16)))


# --- Mistakes in a rule are told as such ---------------------------------------------------------------------------


def _raises(call: Call) -> Any:
    return [call.labels_of(call["y"])]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (_raises, r"register_rule\(Activation\): the rule _raises raised KeyError: 'y' \(.*test_register_rule.py, line "
                  r"\d+\), at activation\. Its arguments are scale, x\."),
        (lambda call: None, r"returned a NoneType, expected a list with the labels of each of the 1 output tensors"),
        (lambda call: [(), ()], r"returned 2 entries, expected a list"),
        (lambda call: [None], r"returned a NoneType for the output of shape \(4, 16\), expected a tuple of labels"),
        (lambda call: [([1, 2],)], r"returned a list as a label of the output of shape"),
        (lambda call: [(np.zeros((1, 16)),)], r"returned an array of float64 as a label"),
        (lambda call: [(np.arange(16),)], r"returned a label of shape \(16,\) for the output of shape \(4, 16\)"),
        (lambda call: [(np.arange(7)[None],)], r"returned a label of shape \(1, 7\) for the output"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_rule_is_told_as_the_rules(rule: Callable[[Call], Any], said: str) -> None:
    prunegate.register_rule(Activation, rule)
    with pytest.raises(prunegate.RuleError, match=said) as raised:
        prunegate.wrap(Net(Activation(16)), torch.randn(4, 6))
    assert "help(prunegate.register_rule)" in str(raised.value)


def test_a_mistake_in_a_rule_that_another_call_meets_is_told_as_the_rules() -> None:
    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.activation = nn.Linear(6, 16), nn.Linear(16, 3), Activation(16)

        def forward(self, x: torch.Tensor, activate: bool = False) -> torch.Tensor:
            y = self.first(x)
            out: torch.Tensor = self.last(self.activation(y) if activate else y)
            return out

    prunegate.register_rule(Activation, lambda call: [(), ()])
    x = torch.randn(4, 6)
    with pytest.raises(prunegate.RuleError, match="returned 2 entries"):
        prunegate.wrap(Chooses(), x, other_calls=[{"x": x, "activate": True}])


def test_a_rule_of_torch_that_does_not_fit_is_named() -> None:
    prunegate.register_rule("prunegate_test::shifted_relu", like="cat")
    with pytest.raises(
        prunegate.RuleError, match=r"register_rule\('prunegate_test::shifted_relu'\): like='cat' raised"
    ):
        prunegate.wrap(Net(Activation(16)), torch.randn(4, 6))


def test_a_rule_has_to_be_a_function() -> None:
    with pytest.raises(prunegate.TraceError, match=r"found the rule 3, expected a function of a Call"):
        prunegate.register_rule(Activation, 3)  # type: ignore[arg-type]
