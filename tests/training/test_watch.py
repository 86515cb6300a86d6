"""Warnings for loops that train nothing, or not the gates."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import prunegate
from prunegate import Budget, GatedModel, GateSteps, PrunegateWarning, TauSchedule
from tests.conftest import SmallNet

EXAMPLE = torch.zeros(2, 3, 8, 8)
Optimizer = torch.optim.Optimizer


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 3, 8, 8, generator=generator), torch.randint(4, (8,), generator=generator)


def with_gate_steps(gated: GatedModel, optimizer: Optimizer, steps: int) -> None:
    gates = GateSteps(gated, 0.5, steps=30)
    for step in range(steps):
        images, labels = batch(step)
        optimizer.zero_grad()
        functional.cross_entropy(gated(images), labels).backward()
        gates.step()
        optimizer.step()


def with_a_budget(gated: GatedModel, optimizer: Optimizer, steps: int) -> None:
    budget, tau = Budget("macs", 0.5), TauSchedule(gated, steps=30)
    logits = torch.optim.Adam(gated.gate_parameters(), lr=0.1)
    for step in range(steps):
        images, labels = batch(step)
        gated.zero_grad()
        optimizer.zero_grad()
        (functional.cross_entropy(gated(images), labels) + budget.penalty(gated)).backward()
        optimizer.step()
        logits.step()
        tau.step()
        budget.step()


LOOPS = [with_gate_steps, with_a_budget]
Loop = Callable[[GatedModel, Optimizer, int], None]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimiser_of_the_first_models_weights_is_noticed(loop: Loop, kind: Any) -> None:
    net = SmallNet()
    optimizer = kind(net.parameters(), lr=0.01)
    gated = prunegate.wrap(net, EXAMPLE).train()
    with pytest.warns(
        PrunegateWarning, match=r"no weight has changed in 5 steps.*wrap works on a copy.*before wrap"
    ) as w:
        loop(gated, optimizer, 12)
    assert len(w) == 1
    assert w[0].filename == __file__


class ThroughData(torch.optim.Optimizer):
    """Writes past the counts that torch keeps."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                parameter.data.sub_(parameter.grad, alpha=0.01)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    "make",
    [
        lambda gated: torch.optim.SGD(gated.parameters(), lr=0.01),
        lambda gated: torch.optim.AdamW(gated.weight_parameters(), lr=0.01, foreach=True),
        lambda gated: torch.optim.Adam(gated.weight_parameters(), lr=0.01, fused=True),
        lambda gated: torch.optim.SGD(gated.model.head.parameters(), lr=0.01),
        lambda gated: ThroughData(gated.weight_parameters()),
    ],
    ids=["all", "foreach", "fused", "the head alone", "through data"],
)
def test_weights_that_move_are_no_matter_for_a_warning(loop: Loop, make: Callable[[GatedModel], Optimizer]) -> None:
    gated = prunegate.wrap(SmallNet(), EXAMPLE).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop(gated, make(gated), 12)


@pytest.mark.parametrize("loop", LOOPS)
def test_gates_alone_may_be_trained_on_purpose(loop: Loop) -> None:
    gated = prunegate.wrap(SmallNet(), EXAMPLE).train()
    gated.model.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop(gated, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01), 12)


def test_steps_that_a_loss_scale_leaves_out_are_no_matter_for_a_warning() -> None:
    gated = prunegate.wrap(SmallNet(), EXAMPLE).train()
    gates = GateSteps(gated, 0.5, steps=30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(12):
            gated.zero_grad()
            (gated(batch(step)[0]).sum() * float("inf")).backward()
            gated.gates.logits.grad.zero_()
            gates.step()


class Anew(torch.autograd.Function):
    """Computes a module again in the backward pass, and hands gradients to its weights alone."""

    @staticmethod
    def forward(ctx: Any, module: nn.Module, x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        ctx.module, ctx.x, ctx.weights = module, x.detach(), weights
        with torch.no_grad():
            return module(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        with torch.enable_grad():
            x = ctx.x.requires_grad_()
            out = functional.linear(x, ctx.weights[0], ctx.weights[1])
        return (None, *torch.autograd.grad(out, [x, *ctx.weights], gradient))


class Recomputing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.recomputes = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.first(x))
        if self.recomputes:
            plain = [torch.nn.Parameter(self.second.weight.detach()), torch.nn.Parameter(self.second.bias.detach())]
            self.weights = plain
            x = Anew.apply(self.second, x, *plain)
        else:
            x = self.second(x)
        return self.third(functional.relu(x))


def recomputing_loop(steps: int, recomputes: bool) -> None:
    gated = prunegate.wrap(Recomputing(), torch.zeros(2, 8)).train()
    gated.model.recomputes = recomputes
    gates = GateSteps(gated, 0.5, steps=200)
    optimizer = torch.optim.SGD(gated.weight_parameters(), lr=0.01)
    for step in range(steps):
        optimizer.zero_grad()
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
        gated(x).square().mean().backward()
        gates.step()
        optimizer.step()


def test_gates_without_a_gradient_while_their_weights_have_one_are_named() -> None:
    with pytest.warns(PrunegateWarning, match=r"gates: first.*: no gradient from the loss in 50 steps.*exclude") as w:
        recomputing_loop(60, recomputes=True)
    assert len(w) == 1
    assert "third" not in str(w[0].message).split(":")[1]


def test_gates_that_have_a_gradient_are_not() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recomputing_loop(60, recomputes=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_budget_that_has_been_used_is_copied_and_pickled(copied: Callable[[Budget], Budget]) -> None:
    gated = prunegate.wrap(SmallNet(), EXAMPLE)
    budget = Budget("macs", 0.5)
    budget.penalty(gated)
    budget.step()
    assert copied(budget).state_dict() == budget.state_dict()
