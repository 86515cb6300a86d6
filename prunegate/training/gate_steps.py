"""Training the gates in the user's own loop: one call before each step of the weights' optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from prunegate.errors import BudgetError, DivergedError, LoopError
from prunegate.gates import Replay
from prunegate.numbers import is_count, is_number
from prunegate.training.batch_norm import reestimate_batch_norm
from prunegate.training.budget import Budget
from prunegate.training.optimizers import logit_optimizer
from prunegate.training.tau import Schedule, TauSchedule
from prunegate.training.watch import TrainingWatch
from prunegate.wrapping import GatedModel, gated_model
from prunegate.wrapping.closest_mask import unreachable

# How far a logit moves that is pushed in one direction for the whole gate stage; its whole range is 9.2.
LOGIT_TRAVEL = 30.0
# The defaults of recipes: initial keep probability, share of the steps in which the target is lowered, and share of the
# steps, at the end, in which gates are frozen.
_KEEP_PROBABILITY = 0.99
_RAMP = 0.5
_FROZEN = 0.4


def steps_drawn(steps: int, frozen: float) -> int:
    """How many of ``steps`` draw masks, if the last ``frozen`` share of them does not; at least one."""
    return max(min(1, steps), steps - round(frozen * steps))


class GateSteps:
    """Steps budget, tau and the logits' own optimiser together.

    `step` removes the logits' gradient, so the optimiser of the weights never sees it: torch's optimisers skip
    parameters without a gradient, including their weight decay. Your optimiser may therefore hold all of
    ``model.parameters()``.

    In the last steps the gates are frozen: masks that meet the budget are fixed, and the weights adapt to them.

    Attributes:
        count: Steps taken, frozen or not.
        steps: Steps until `finish`.

    Args:
        gated: The gated model; its logits and tau are set to their initial values.
        budget: A `Budget`, or a fraction of the dense MACs, whose target is lowered over the first half of the steps.
        steps: Optimiser steps from now until `finish`.
        frozen: Share of the steps, at the end, in which the gates are frozen, in [0, 1).
        tau_start: Tau at the first step, > 0.
        tau_end: Tau at the last step before the gates are frozen, in (0, tau_start].
        tau_schedule: How tau is annealed.
        learning_rate: Adam's learning rate for the logits; by default 30 / (steps before the gates are frozen).
        fresh: False keeps the current logits, because they have been trained before or are about to be loaded. Logits
            are also kept if some units are closed for good.

    Raises:
        NotGatedError: ``gated`` is not a gated model.
        BudgetError: Values out of range, or a budget below what the gates can reach.
        DivergedError: Weights are not finite, and the gates are fresh.
        LoopError: The gated model's masks are fixed, and the gates are fresh.
    """

    def __init__(
        self,
        gated: GatedModel,
        budget: Budget | float = 0.5,
        *,
        steps: int,
        frozen: float = _FROZEN,
        tau_start: float = 2.0,
        tau_end: float = 0.1,
        tau_schedule: Schedule = "exponential",
        learning_rate: float | None = None,
        fresh: bool = True,
    ) -> None:
        gated = gated_model(gated, "GateSteps")
        if fresh:
            _refuse_fixed(gated)
        if not is_count(steps) or not steps:
            raise BudgetError(f"steps: found {steps!r}, expected a whole number of at least 1: steps until finish.")
        if not is_number(frozen) or not 0.0 <= frozen < 1.0:
            raise BudgetError(
                f"frozen: found {frozen!r}, expected a share of the steps in [0, 1). Gates have to learn before they "
                "are frozen. Use 0.4, or 0 to draw masks until the end."
            )
        steps = int(steps)
        if learning_rate is not None and not (is_number(learning_rate) and learning_rate > 0):
            raise BudgetError(
                f"learning_rate: found {learning_rate!r}, expected a number above 0, or none for 30 / steps."
            )
        self.gated, self.steps = gated, steps
        self.count = 0
        drawn = steps_drawn(steps, frozen)
        self._freeze_after = drawn if drawn < steps else None
        self.tau = TauSchedule(gated, tau_start, tau_end, drawn, tau_schedule)
        if not isinstance(budget, Budget):
            budget = Budget("macs", budget, ramp_steps=round(_RAMP * steps))
        self.budget = budget
        limit = budget.limit_for(gated.dense_cost(budget.metric))
        if limit < gated.least_cost(budget.metric):
            raise BudgetError(unreachable(gated, budget.metric, limit))
        if fresh and bool(gated.gates.open_units().all()):
            gated.gates.start_at(_KEEP_PROBABILITY, gated.magnitudes())
        self.optimizer = logit_optimizer(gated, learning_rate or LOGIT_TRAVEL / drawn)
        self._replay = Replay()
        self._watch = TrainingWatch()
        self._gradient: torch.Tensor | None = None

    def step(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """Step the gates; call it after ``loss.backward()`` and before the step of the weights' optimiser.

        The penalty's gradient is added once to the logits' gradient from the loss, which may be summed over any number
        of backward passes. Afterwards the logits have no gradient.

        Args:
            scaler: The scaler of the loss, if there is one (float16). Call `step` before ``scaler.update()``, and
                before ``scaler.unscale_`` of an optimiser that also holds the logits.

        Raises:
            LoopError: The logits have no gradient, or masks are fixed although the gates are not frozen.
            DivergedError: The gradient is not finite; nothing has been changed. Checked on the CPU only, where it needs
                no synchronisation; on other devices `Budget` notices within a few steps.
        """
        self._watch.look(self.gated)
        logits = self.gated.gates.logits
        if self.are_frozen:
            self.count += 1
            logits.grad = None
            return
        _refuse_fixed(self.gated)
        if logits.grad is None:
            raise LoopError(
                "GateSteps.step: the logits have no gradient, expected that of the loss. Without it, units would be "
                "removed by their cost alone. Call the gated model itself, not the model inside it, and call step "
                "after loss.backward(), before the gradients are zeroed."
            )
        if scaler is None and logits.grad.device.type == "cpu" and not math.isfinite(float(logits.grad.sum())):
            raise DivergedError(
                f"GateSteps.step: step {self.count}: found a gradient of the logits that is not finite, expected "
                "numbers. The loss, the data or the weights contain NaN. Neither logits nor weights have been stepped. "
                "Look for NaN in the batch and the weights, or lower the learning rate of the weights."
            )
        if scaler is not None:
            scaler.unscale_(self.optimizer)
            self._move(self.budget.target(self.gated), lambda: scaler.step(self.optimizer))
        else:
            self._replayed_move(logits)
        logits.grad = None
        self.tau.step()
        self.budget._advance()
        self.count += 1
        if self.count == self._freeze_after:
            self.gated.harden(self.budget)

    def _replayed_move(self, logits: torch.Tensor) -> None:
        """`_move` on the same tensors at each step, so that it can be replayed as a CUDA graph."""
        control = self.budget._control_on(logits.device)
        control.target.fill_(self.budget.target(self.gated))
        if self._gradient is None or self._gradient.device != logits.device:
            self._gradient = torch.empty_like(logits)
        assert logits.grad is not None
        logits.grad = self._gradient.copy_(logits.grad)
        state = [value for value in self.optimizer.state[logits].values() if isinstance(value, torch.Tensor)]
        rate, estimator = self.optimizer.param_groups[0]["lr"], self.gated.gates.estimator
        gates = self.gated.gates
        tensors = (logits, self._gradient, *control, *state, gates.dropped, gates.is_fixed, gates.closed)
        self._replay(lambda: self._move(control.target, self.optimizer.step), tensors, rate, estimator)

    def _move(self, target: float | torch.Tensor, step: Callable[[], Any]) -> None:
        """Add the penalty's gradient to the logits', step, and update the penalty's strength."""
        logits = self.gated.gates.logits
        with torch.enable_grad():  # optimisers call closures with gradients off
            # On detached logits: the real ones have hooks that average gradients over processes, and use another
            # stream.
            leaf = logits.detach().requires_grad_()
            penalty = self.budget._penalty(self.gated.expected_cost(self.budget.metric, leaf), target)
        (pull,) = torch.autograd.grad(penalty, [leaf])
        assert logits.grad is not None
        logits.grad += pull
        step()
        self.gated.gates.clamp_()
        self.budget._update()

    @property
    def are_frozen(self) -> bool:
        """Whether the gates are frozen, so that the remaining steps train only the weights."""
        return self._freeze_after is not None and self.count >= self._freeze_after

    def finish(self, batches: Iterable[Any] | None = None) -> None:
        """Fix hard masks that meet the budget. On an error, masks and statistics are left unchanged.

        Args:
            batches: Batches of training data, to re-estimate BatchNorm statistics under these masks (while masks were
                drawn, the statistics mixed many subnetworks). Whatever a loader yields: inputs, (inputs, labels), or
                dicts.

        Raises:
            BudgetError: Even the fewest units allowed cost more.
            LoopError: There is no batch, or the model cannot be called with a batch.
        """
        with self.gated.gates.unchanged_on_error():
            self.gated.harden(self.budget)
            if batches is not None:
                reestimate_batch_norm(self.gated, batches)

    def __repr__(self) -> str:
        drawn, frozen = self.tau.steps, self._freeze_after is not None
        until = f", gates {'frozen since' if self.are_frozen else 'are frozen after'} step {drawn}" if frozen else ""
        return f"GateSteps(step {self.count} of {self.steps}{until}, tau {self.gated.tau:.3g}, {self.budget!r})"

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Values to log: the expected cost in units of the budget's metric, tau, and the multiplier."""
        metric = self.budget.metric
        return {
            f"expected_{metric}": float(self.gated.expected_cost(metric)),
            "tau": self.gated.tau,
            "multiplier": self.budget.multiplier,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything except the logits and their noise, which are in the gated model's ``state_dict``."""
        return {
            "count": self.count,
            "budget": self.budget.state_dict(),
            "tau": self.tau.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`; load the gated model's as well."""
        self.count = int(state["count"])
        self.budget.load_state_dict(state["budget"])
        self.tau.load_state_dict(state["tau"])
        self.optimizer.load_state_dict(state["optimizer"])


def _refuse_fixed(gated: GatedModel) -> None:
    if gated.gates.are_fixed:
        raise LoopError(
            "GateSteps: found a gated model with fixed masks, expected masks that are drawn from the logits. Masks are "
            "fixed by harden or set_masks, and the logits then learn nothing. To train the gates again, call "
            "gated.release_masks(); to finetune, train without GateSteps or its callback."
        )
