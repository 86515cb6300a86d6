from __future__ import annotations

from typing import Any

import pytest
import torch

from prunegate import Budget, BudgetError

DENSE = 1000


class LinearCost:
    """A stand-in for a gated model whose cost is proportional to the mean keep probability."""

    def __init__(self, units: int) -> None:
        self.logits = torch.full((units,), 2.0, dtype=torch.float64, requires_grad=True)

    def dense_cost(self, metric: str) -> int:
        assert metric == "macs"
        return DENSE

    def probability(self) -> torch.Tensor:
        return torch.sigmoid(self.logits)

    def expected_cost(self, metric: str) -> torch.Tensor:
        assert metric == "macs"
        return DENSE * self.probability().mean()


def solve(model: Any, wanted: torch.Tensor, budget: Budget, steps: int, scale: float = 1.0) -> list[float]:
    """Minimise ½ · scale · Σ (p − wanted)² under the budget; give the expected fraction at every step.

    Adam's steps do not shrink by themselves near an optimum, so its rate falls along a cosine.
    """
    adam = torch.optim.Adam([model.logits], lr=0.05)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps, eta_min=1e-3)
    fractions = []
    for _ in range(steps):
        loss = 0.5 * scale * (model.probability() - wanted).square().sum() + budget.penalty(model)
        adam.zero_grad()
        loss.backward()
        adam.step()
        cosine.step()
        budget.step()
        fractions.append(float(model.expected_cost("macs").detach()) / DENSE)
    return fractions


def test_budget_finds_the_closed_form_solution() -> None:
    # Stationarity of ½ Σ (p_i − a_i)² + λ (mean(p) / t − 1) is p_i = a_i − λ/(n t); the constraint gives
    # λ = n t (mean(a) − t).
    model = LinearCost(10)
    wanted = torch.linspace(0.6, 0.9, 10, dtype=torch.float64)
    budget = Budget("macs", fraction=0.5, ramp_steps=200)
    fractions = solve(model, wanted, budget, 1500)
    assert budget.multiplier == pytest.approx(10 * 0.5 * (0.75 - 0.5), rel=0.02)
    torch.testing.assert_close(model.probability().detach(), wanted - 0.25, atol=5e-3, rtol=0)
    assert max(fractions[750:]) <= 1.01 * 0.5
    assert min(fractions) >= 0.9 * 0.5, "overshoot"


def test_multiplier_stays_zero_when_the_budget_does_not_bind() -> None:
    model = LinearCost(10)
    with torch.no_grad():
        model.logits.fill_(-1.0)
    wanted = torch.full((10,), 0.3, dtype=torch.float64)
    budget = Budget("macs", fraction=0.5)
    solve(model, wanted, budget, 400)
    assert budget.multiplier == 0.0
    torch.testing.assert_close(model.probability().detach(), wanted, atol=5e-3, rtol=0)


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_budget_is_met_whatever_the_scale_of_the_loss(scale: float) -> None:
    model = LinearCost(10)
    budget = Budget("macs", fraction=0.4, ramp_steps=200)
    fractions = solve(model, torch.full((10,), 0.9, dtype=torch.float64), budget, 1500, scale)
    assert fractions[-1] <= 1.01 * 0.4
    assert min(fractions) >= 0.9 * 0.4, "overshoot"
    assert budget.multiplier == pytest.approx(scale * 10 * 0.4 * 0.5, rel=0.05)


def test_target_comes_down_in_a_straight_line_and_stays() -> None:
    budget, model = Budget("macs", fraction=0.5, ramp_steps=4), LinearCost(3)
    targets = []
    for _ in range(6):
        targets.append(budget.target(model))  # type: ignore[arg-type]
        budget.step()
    assert targets == [1000.0, 875.0, 750.0, 625.0, 500.0, 500.0]


def test_limit_is_rounded_down_and_never_above_dense() -> None:
    assert Budget("macs", fraction=0.5).limit_for(1001) == 500
    assert Budget("params", fraction=1.0).limit_for(7) == 7
    assert Budget("macs", limit=300).limit_for(1001) == 300
    assert Budget("macs", limit=3000).limit_for(1001) == 1001


def test_state_dict_round_trip_continues_identically() -> None:
    wanted = torch.linspace(0.6, 0.9, 10, dtype=torch.float64)
    first, budget = LinearCost(10), Budget("macs", fraction=0.5, ramp_steps=50)
    solve(first, wanted, budget, 30)
    second, restored = LinearCost(10), Budget("macs", fraction=0.5, ramp_steps=50)
    with torch.no_grad():
        second.logits.copy_(first.logits)
    restored.load_state_dict(budget.state_dict())
    assert budget.multiplier > 0
    assert solve(first, wanted, budget, 40) == solve(second, wanted, restored, 40)
    assert budget.state_dict() == restored.state_dict()


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, float("nan")])
def test_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(BudgetError, match=rf"budget\.fraction: found {fraction}, expected a number in \(0, 1\]"):
        Budget("macs", fraction=fraction)


def test_budget_needs_one_target_and_a_known_metric() -> None:
    with pytest.raises(BudgetError, match="either a fraction of the dense cost or an absolute limit"):
        Budget("macs")
    with pytest.raises(BudgetError, match="either a fraction of the dense cost or an absolute limit"):
        Budget("macs", fraction=0.5, limit=10)
    with pytest.raises(BudgetError, match=r"budget\.limit: found 0, expected a positive cost"):
        Budget("macs", limit=0)
    with pytest.raises(BudgetError, match=r"budget\.metric: found 'flops', expected one of macs, params"):
        Budget("flops", fraction=0.5)


def test_second_target_comes_down_from_the_first() -> None:
    budget, model = Budget("macs", fraction=0.25, ramp_steps=2, ramp_from=0.5), LinearCost(3)
    targets = []
    for _ in range(4):
        targets.append(budget.target(model))  # type: ignore[arg-type]
        budget.step()
    assert targets == [500.0, 375.0, 250.0, 250.0]
    with pytest.raises(BudgetError, match="ramp_from"):
        Budget("macs", fraction=0.25, ramp_from=0.0)
