"""Users teach the tracer operations and modules of their own."""

from __future__ import annotations

from collections.abc import Iterator

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
