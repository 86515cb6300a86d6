from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional

from prunegate import Budget, BudgetError, GatedModel, GateSteps, LoopError, wrap
from prunegate.gates.gates import LOGIT_LIMIT
from tests.conftest import SmallNet

STEPS = 40


def gated_model(seed: int = 0) -> GatedModel:
    torch.manual_seed(seed)
    return wrap(SmallNet(), torch.zeros(2, 3, 8, 8))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 3, 8, 8, generator=generator), torch.randint(4, (16,), generator=generator)


def train(gated: GatedModel, gates: GateSteps, optimizer: torch.optim.Optimizer, steps: range) -> None:
    gated.train()
    for step in steps:
        images, labels = batch(step)
        optimizer.zero_grad()
        functional.cross_entropy(gated(images), labels).backward()
        gates.step()
        optimizer.step()


def test_finish_meets_the_budget_after_any_loop() -> None:
    gated = gated_model()
    gates = GateSteps(gated, 0.5, steps=STEPS)
    train(gated, gates, torch.optim.SGD(gated.parameters(), lr=0.05), range(STEPS))
    assert gated.tau == gates.tau.end
    assert gates.metrics()["expected_macs"] < 0.8 * gated.dense_cost()
    gates.finish([batch(0)[0]])
    assert 0.3 < gated.realised_cost() / gated.dense_cost() <= 0.5


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "RMSprop", "NAdam"])
def test_step_keeps_the_logits_from_an_optimiser_that_holds_them(optimizer: str) -> None:
    make: Any = getattr(torch.optim, optimizer)
    tensors = []
    for holds_logits in (True, False):
        gated = gated_model()
        gates = GateSteps(gated, 0.5, steps=STEPS)
        held = list(gated.parameters() if holds_logits else gated.weight_parameters())
        train(gated, gates, make(held, lr=0.01, weight_decay=0.5), range(5))
        tensors.append([tensor.detach().clone() for tensor in gated.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


def test_step_adds_the_penalty_once_to_gradients_of_several_backward_passes() -> None:
    gated = gated_model()
    budget = Budget("macs", 0.3)
    budget.multiplier = 2.0
    gates = GateSteps(gated, budget, steps=STEPS)
    logits = gated.gates.logits
    (expected,) = torch.autograd.grad(budget.penalty(gated), [logits])
    seen: list[torch.Tensor] = []
    gates.optimizer.register_step_pre_hook(lambda *_: seen.append(torch.as_tensor(logits.grad).clone()))
    for step in range(3):
        functional.cross_entropy(gated(batch(step)[0]), batch(step)[1]).backward()
    of_loss = torch.as_tensor(logits.grad).clone()
    weights = [torch.as_tensor(p.grad).clone() for p in gated.weight_parameters() if p.grad is not None]
    gates.step()
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], of_loss + expected)
    assert logits.grad is None
    after = [p.grad for p in gated.weight_parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(weights, after, strict=True))
    assert budget.count == gates.tau.count == 1


def test_state_goes_on_as_if_undisturbed() -> None:
    gated = gated_model()
    gates = GateSteps(gated, 0.5, steps=STEPS)
    optimizer = torch.optim.Adam(gated.parameters(), lr=0.01)
    train(gated, gates, optimizer, range(10))
    saved = copy.deepcopy((gated.state_dict(), gates.state_dict(), optimizer.state_dict()))
    train(gated, gates, optimizer, range(10, 20))

    other = gated_model(1)
    other_gates = GateSteps(other, 0.5, steps=STEPS)
    other_optimizer = torch.optim.Adam(other.parameters(), lr=0.01)
    for part, state in zip((other, other_gates, other_optimizer), saved, strict=True):
        part.load_state_dict(state)
    train(other, other_gates, other_optimizer, range(10, 20))
    assert all(torch.equal(a, b) for a, b in zip(gated.parameters(), other.parameters(), strict=True))
    assert other_gates.metrics() == gates.metrics()


def test_gates_are_frozen_in_the_last_steps_and_go_on_frozen() -> None:
    gated = gated_model()
    gates = GateSteps(gated, 0.5, steps=STEPS, frozen=0.25)
    optimizer = torch.optim.AdamW(gated.parameters(), lr=0.01, weight_decay=0.5)
    train(gated, gates, optimizer, range(29))
    assert not gates.are_frozen
    train(gated, gates, optimizer, range(29, 30))
    assert gates.are_frozen
    assert gated.tau == gates.tau.end
    assert gated.realised_cost() <= 0.5 * gated.dense_cost()
    masks, logits = gated.gates.hard_mask().clone(), gated.gates.logits.detach().clone()
    weights = [p.detach().clone() for p in gated.weight_parameters()]
    saved = copy.deepcopy((gated.state_dict(), gates.state_dict(), optimizer.state_dict()))
    train(gated, gates, optimizer, range(30, 35))
    assert torch.equal(gated.gates.logits, logits)
    assert not any(torch.equal(p, before) for p, before in zip(gated.weight_parameters(), weights, strict=True))

    other = gated_model(1)
    other_optimizer = torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.5)
    other.load_state_dict(saved[0])  # as trainers do it, which load the model first
    other_gates = GateSteps(other, 0.5, steps=STEPS, frozen=0.25, fresh=False)
    other_gates.load_state_dict(saved[1])
    other_optimizer.load_state_dict(saved[2])
    train(other, other_gates, other_optimizer, range(30, 35))
    assert all(torch.equal(a, b) for a, b in zip(gated.parameters(), other.parameters(), strict=True))
    other_gates.finish()
    assert torch.equal(other.gates.hard_mask(), masks)


def test_masks_are_drawn_to_the_end_if_none_are_to_be_frozen() -> None:
    gated = gated_model()
    gates = GateSteps(gated, 0.5, steps=STEPS, frozen=0.0)
    train(gated, gates, torch.optim.SGD(gated.parameters(), lr=0.05), range(STEPS))
    assert not gates.are_frozen
    assert not gated.gates.are_fixed


def test_masks_that_others_have_fixed_are_not_taken_for_frozen_gates() -> None:
    gated = gated_model()
    gates = GateSteps(gated, steps=STEPS)
    gated.harden(gates.budget)
    with pytest.raises(LoopError, match=r"found a gated model with fixed masks"):
        train(gated, gates, torch.optim.SGD(gated.parameters(), lr=0.05), range(1))


def test_logits_start_by_magnitude_only_when_fresh() -> None:
    gated = gated_model()
    with torch.no_grad():
        gated.gates.logits.fill_(0.5)
    GateSteps(gated, steps=STEPS, fresh=False)
    assert bool((gated.gates.logits == 0.5).all())
    GateSteps(gated, steps=STEPS)
    assert gated.gates.logits.std() > 0.1
    assert gated.gates.logits.max().item() == pytest.approx(LOGIT_LIMIT)


def test_logits_stay_where_they_are_when_some_are_closed() -> None:
    gated = gated_model()
    GateSteps(gated, 0.5, steps=STEPS).finish()
    gated.gates.close_removed()
    before = gated.gates.logits.detach().clone()
    GateSteps(gated, 0.3, steps=STEPS)
    assert torch.equal(gated.gates.logits, before)


def test_fixed_masks_are_refused() -> None:
    gated = gated_model()
    gates = GateSteps(gated, steps=STEPS)
    gates.finish()
    with pytest.raises(LoopError, match=r"found a gated model with fixed masks.*release_masks\(\)"):
        GateSteps(gated, steps=STEPS)


def test_step_without_a_gradient_is_refused() -> None:
    gated = gated_model()
    gates = GateSteps(gated, steps=STEPS)
    functional.cross_entropy(gated.model(batch(0)[0]), batch(0)[1]).backward()
    with pytest.raises(LoopError, match="the logits have no gradient"):
        gates.step()


@pytest.mark.parametrize(
    "wrong",
    [{"budget": 1.5}, {"budget": 1e-4}, {"steps": 0}, {"tau_start": 0.05}, {"frozen": 1.0}, {"frozen": -0.1}],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BudgetError):
        GateSteps(gated_model(), **{"steps": STEPS, **wrong})
