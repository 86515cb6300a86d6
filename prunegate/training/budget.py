"""A budget as a constraint: a controller sets the strength of the penalty, so it needs no tuning."""

from __future__ import annotations

import math
import weakref
from typing import Any, NamedTuple

import torch

from prunegate.costs import COUNTS, METRICS
from prunegate.errors import BudgetError, DivergedError
from prunegate.numbers import is_number
from prunegate.training.watch import TrainingWatch
from prunegate.wrapping import GatedModel, gated_model

# Training stops if, once the ramp is over, the violation stays above _STUCK_VIOLATION and does not shrink by the share
# _STUCK_PROGRESS for this many steps.
_STUCK_STEPS, _STUCK_VIOLATION, _STUCK_PROGRESS = 200, 0.5, 0.05
# Steps between these checks, each of which synchronises with the device.
_LOOK_EVERY = 50


class _Control(NamedTuple):
    """The state of the controller: 0-d tensors on the gates' device, updated without synchronisation."""

    integral: torch.Tensor
    multiplier: torch.Tensor
    violation: torch.Tensor
    target: torch.Tensor


class Budget:
    """The constraint *expected cost ≤ target*, enforced by a multiplier under PI control.

    With the violation v = (expected − target) / target, the penalty is ``multiplier · v + quadratic/2 ·
    max(v, 0)²``. After every step the multiplier becomes ``max(0, proportional · v + integral)``, and the
    integral grows by ``integral_gain · v`` without falling below zero. The violation is relative to the target, so a
    small budget is met as closely as a large one. The target is ramped down from the dense cost, so the gates can
    follow it gradually.

    Args:
        metric: ``"macs"``, ``"params"``, ``"memory_mb"``, or ``"latency_ms"`` after `prunegate.measure_latency`.
        fraction: Target as a fraction of the dense cost, in (0, 1].
        limit: Absolute target instead: MACs per sample, parameters, or milliseconds or megabytes per call.
        ramp_steps: Optimisation steps over which the target is lowered to the limit.
        ramp_from: Initial target as a fraction of the dense cost, in (0, 1].
        margin: How far the expected cost is kept below the target, as a fraction of it, so that hardening does not have
            to remove units that training relied on.

    Raises:
        BudgetError: A fraction or limit is out of range, both or neither are given, or the metric is unknown.

    Reference:
        Sohrabi et al., "On PI controllers for updating Lagrange multipliers in constrained optimization",
        2024, arXiv:2406.04558.
    """

    def __init__(
        self,
        metric: str = "macs",
        fraction: float | None = None,
        *,
        limit: float | None = None,
        ramp_steps: int = 0,
        ramp_from: float = 1.0,
        margin: float = 0.0,
        proportional_gain: float = 20.0,
        integral_gain: float = 0.5,
        quadratic: float = 10.0,
    ) -> None:
        if metric not in METRICS:
            hint = f" Use Budget('macs', {metric})." if is_number(metric) else ""
            raise BudgetError(f"budget.metric: found {metric!r}, expected one of {', '.join(METRICS)}.{hint}")
        if (fraction is None) == (limit is None):
            raise BudgetError("budget: expected either a fraction of the dense cost or an absolute limit.")
        if fraction is not None and not (is_number(fraction) and 0 < fraction <= 1):
            raise BudgetError(
                f"budget.fraction: found {fraction!r}, expected a number in (0, 1]: the share of the dense cost "
                "that may remain. Write 0.5 to keep half of it."
            )
        if limit is not None and not (is_number(limit) and limit > 0):
            raise BudgetError(
                f"budget.limit: found {limit!r}, expected a positive cost, in MACs, parameters, ms or MB."
            )
        if not (is_number(ramp_from) and 0 < ramp_from <= 1):
            raise BudgetError(
                f"budget.ramp_from: found {ramp_from!r}, expected a fraction of the dense cost in (0, 1]."
            )
        if not (is_number(ramp_steps) and ramp_steps >= 0):
            raise BudgetError(f"budget.ramp_steps: found {ramp_steps!r}, expected a number of steps, 0 or more.")
        if not (is_number(margin) and 0 <= margin < 1):
            raise BudgetError(f"budget.margin: found {margin!r}, expected a fraction of the target in [0, 1).")
        gains = {"proportional_gain": proportional_gain, "integral_gain": integral_gain, "quadratic": quadratic}
        for name, gain in gains.items():
            if not (is_number(gain) and gain >= 0):
                raise BudgetError(f"budget.{name}: found {gain!r}, expected a number of at least 0.")
        self.metric, self.fraction, self.limit = metric, fraction, limit
        self.ramp_steps, self.ramp_from, self.margin = ramp_steps, ramp_from, margin
        self.proportional_gain, self.integral_gain, self.quadratic = (
            proportional_gain,
            integral_gain,
            quadratic,
        )
        self.count = 0
        self._seen = False  # whether there has been a penalty
        self._start = 0.0, 0.0  # integral and multiplier before there is a device
        self._control: _Control | None = None
        self._gated: weakref.ref[GatedModel] | None = None  # the model of the last penalty
        self._watch = TrainingWatch()
        self._mark: tuple[int, float] | None = None  # step and violation from which it has not decreased

    @property
    def multiplier(self) -> float:
        """The current strength of the penalty; reading it synchronises with the device."""
        return self._start[1] if self._control is None else float(self._control.multiplier)

    @multiplier.setter
    def multiplier(self, value: float) -> None:
        self._start = self.integral, value
        self._control = None

    @property
    def integral(self) -> float:
        """The part of the multiplier that past violations add up to; reading it synchronises with the device."""
        return self._start[0] if self._control is None else float(self._control.integral)

    def limit_for(self, dense_cost: float) -> float:
        """The absolute limit for a model of this dense cost; counts are rounded down."""
        if self.limit is not None:
            limit = min(self.limit, dense_cost)
        else:
            assert self.fraction is not None
            limit = self.fraction * dense_cost
        return math.floor(limit) if self.metric in COUNTS else limit

    def target(self, gated: GatedModel) -> float:
        """The current, ramped target in units of the metric."""
        dense = gated.dense_cost(self.metric)
        final = self.limit_for(dense) * (1.0 - self.margin)
        progress = 1.0 if self.ramp_steps == 0 else min(1.0, self.count / self.ramp_steps)
        start = max(final, self.ramp_from * dense)
        return start + (final - start) * progress

    def penalty(self, gated: GatedModel) -> torch.Tensor:
        """The term to add to the loss: 0-d tensor, differentiable in the logits."""
        if not hasattr(gated, "expected_cost"):
            gated_model(gated, "Budget.penalty")
        # Any object with an expected cost can have a budget; only a model with weights and gates is watched.
        self._gated = weakref.ref(gated) if isinstance(gated, GatedModel) else None
        return self._penalty(gated.expected_cost(self.metric), self.target(gated))

    def _penalty(self, expected: torch.Tensor, target: float | torch.Tensor) -> torch.Tensor:
        violation = expected / target - 1.0
        control = self._control_on(violation.device)
        control.violation.copy_(violation.detach())
        self._seen = True
        return control.multiplier.clone() * violation + 0.5 * self.quadratic * violation.clamp(min=0.0).square()

    def _control_on(self, device: torch.device) -> _Control:
        if self._control is None or self._control.violation.device != device:
            dtype = torch.float32 if device.type == "mps" else torch.float64  # as the expected cost
            values = self.integral, self.multiplier, 0.0, 0.0
            self._control = _Control(*(torch.tensor(value, dtype=dtype, device=device) for value in values))
        return self._control

    def step(self) -> None:
        """Update the multiplier from the violation of the last `penalty`, and advance the ramp.

        Raises:
            DivergedError: The expected cost has not decreased for too long, so the multiplier would only grow; or
                logits are NaN.
        """
        gated = None if self._gated is None else self._gated()
        if gated is not None:
            self._watch.look(gated)
        # Reading it needs no synchronisation on the CPU.
        if self._control is not None and self._control.violation.device.type == "cpu":
            self._refuse_lost(float(self._control.violation))
        self._update()
        self._advance()

    @torch.no_grad()
    def _update(self) -> None:
        """Update the controller in place from the last penalty."""
        if self._seen and self._control is not None:
            integral, multiplier, violation, _ = self._control
            integral.add_(violation, alpha=self.integral_gain).clamp_(min=0.0)
            multiplier.copy_(integral).add_(violation, alpha=self.proportional_gain).clamp_(min=0.0)

    def _advance(self) -> None:
        if self._seen and self._control is not None and self.count % _LOOK_EVERY == 0:
            violation = float(self._control.violation)
            self._refuse_lost(violation)
            self._refuse_stuck(violation)
        self.count += 1

    def _refuse_lost(self, violation: float) -> None:
        if not math.isfinite(violation):
            raise DivergedError(
                f"budget: step {self.count}: the expected {self.metric} are not finite. The logits have become NaN, as "
                "the loss of an earlier step was not finite. Go back to a state before that step, and look for NaN in "
                "the data or the weights, or lower the learning rates."
            )

    def _refuse_stuck(self, violation: float) -> None:
        if self.count < self.ramp_steps or violation <= _STUCK_VIOLATION:
            self._mark = None
        elif self._mark is None or violation < (1.0 - _STUCK_PROGRESS) * self._mark[1]:
            self._mark = (self.count, violation)
        elif self.count - self._mark[0] >= _STUCK_STEPS:
            raise DivergedError(
                f"budget: the expected {self.metric} have been {1.0 + violation:.2f} of the target for {_STUCK_STEPS} "
                f"steps, expected them to decrease to it. The multiplier has grown to {self.multiplier:.3g} without "
                "effect on the gates. Raise gates.learning_rate, or remove patterns from gates.exclude."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_gated": None}  # the weak reference is not part of the state and cannot be pickled

    def state_dict(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "integral": self.integral,
            "multiplier": self.multiplier,
            "mark": self._mark,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = int(state["count"])
        self._start = float(state["integral"]), float(state["multiplier"])
        self._control = None
        self._mark = state.get("mark")

    def __repr__(self) -> str:
        size = f"fraction={self.fraction}" if self.limit is None else f"limit={self.limit}"
        ramp = f", step {self.count} of {self.ramp_steps} of the ramp" if self.count < self.ramp_steps else ""
        return f"Budget({self.metric!r}, {size}, multiplier={self.multiplier:.3g}{ramp})"
