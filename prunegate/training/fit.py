"""The training loop: one stage of a run, which can be stopped after any step and resumed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

from prunegate.training.distillation import Distillation
from prunegate.training.health import GateHealth, gate_figures
from prunegate.training.labels import chunks, labels_to
from prunegate.training.losses import Losses, Place
from prunegate.training.optimizers import logit_optimizer, rate_scheduler, weight_average, weight_optimizer
from prunegate.training.plans import GateTraining, TrainingPlan
from prunegate.training.processes import Processes, random_states, set_random_states
from prunegate.training.records import EpochRecord
from prunegate.wrapping import GatedModel

logger = logging.getLogger(__name__)

# (inputs, class indices or probabilities, or labels of any form), and then, optionally, the indices of these samples.
Batch = tuple[Any, ...]
Loss = Callable[[Any, Any], torch.Tensor]


class Fit:
    """Trains a model for ``plan.epochs`` epochs.

    With its state, the model's and those of the random generators, another `Fit` with the same arguments continues bit
    for bit as this one would have.

    Args:
        steps_per_epoch: Batches of an epoch.
        gates: If given, the model is a `GatedModel` whose logits are trained too.
        distillation: If given, the model also learns from a teacher's outputs.
        loss: Of (scores, labels), 0-d; by default cross entropy with the plan's label smoothing.
        processes: The processes that train together; by default only this one.
        example_inputs: Some inputs, to find out whether a forward pass uses every parameter; needed with several
            processes.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: TrainingPlan,
        steps_per_epoch: int,
        gates: GateTraining | None = None,
        distillation: Distillation | None = None,
        loss: Loss | None = None,
        processes: Processes | None = None,
        example_inputs: torch.Tensor | None = None,
    ) -> None:
        self.model, self.plan, self.steps_per_epoch, self.gates = model, plan, steps_per_epoch, gates
        self.processes = processes or Processes()
        self.step = 0
        self._gated = model if isinstance(model, GatedModel) and gates is not None else None
        self._distillation, self._loss = distillation, loss
        self._losses = Losses(plan, self.processes)
        self._hard: torch.Tensor | None = None
        self.processes.place(model)  # first, as optimisers choose their kernels by the parameters' device
        weights = model.model if isinstance(model, GatedModel) else model
        self._weights = list(weights.parameters())
        optimizers: list[torch.optim.Optimizer] = [weight_optimizer(weights, plan)]
        self._scheduler = rate_scheduler(optimizers[0], plan, steps_per_epoch)
        if gates is not None and self._gated is not None:
            optimizers.append(logit_optimizer(self._gated, gates.learning_rate))
        self._average = weight_average(model, plan) if self._gated is None else None
        self._prepared, self._optimizers = self.processes.prepare(
            model, optimizers, lambda: example_inputs is not None and self._uses_all(example_inputs)
        )
        if distillation is not None:
            self.processes.place(distillation.teacher)

    def epochs(
        self,
        batches: Callable[[int, int], Iterable[Batch]],
        accuracy: Callable[[nn.Module], float],
        after_step: Callable[[], None] | None = None,
    ) -> Iterator[EpochRecord]:
        """Train; yield a record after each epoch.

        Args:
            batches: Given an epoch and a step within it, the batches of that epoch from that step on.
            accuracy: Evaluates the model after each epoch, in eval mode with hard masks.
            after_step: Called after each step; after an epoch's last step, once its record exists.

        Raises:
            DivergedError: The loss is not finite, or the multiplier grows without effect.
        """
        self._prepared.train()
        while self.step < self.plan.epochs * self.steps_per_epoch:
            epoch, first = divmod(self.step, self.steps_per_epoch)
            for batch in batches(epoch, first):
                self._train_on(batch, epoch)
                if after_step is not None and self.step % self.steps_per_epoch:
                    after_step()
            if self.step != (epoch + 1) * self.steps_per_epoch:
                raise ValueError(f"epoch {epoch + 1}: found {self.step} steps, expected {self.steps_per_epoch} each.")
            yield self._record(epoch, accuracy)
            self._prepared.train()
            if after_step is not None:
                after_step()
        self._finish()

    def state_dict(self) -> dict[str, Any]:
        """Everything except the model's weights and logits and the random states.

        Raises:
            DivergedError: The loss of the last step is not finite.
        """
        return {
            "step": self.step,
            "losses": self._losses.state_dict(),
            "loss_scale": self.processes.loss_scale_state(),
            "hard": self._hard,
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "average": None if self._average is None else self._average.module.state_dict(),
            "gates": None
            if self.gates is None
            else {"budgets": [b.state_dict() for b in self.gates.budgets], "tau": self.gates.tau.state_dict()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self._losses.load_state_dict(state["losses"])
        self.processes.load_loss_scale_state(state["loss_scale"])
        self._hard = None if state["hard"] is None else state["hard"].to(self.processes.device)
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self._average is not None and state["average"] is not None:
            self._average.module.load_state_dict(state["average"])
        if self.gates is not None:
            for budget, saved in zip(self.gates.budgets, state["gates"]["budgets"], strict=True):
                budget.load_state_dict(saved)
            self.gates.tau.load_state_dict(state["gates"]["tau"])

    # ---------------------------------------------------------------------------------------------

    def _drawn(self) -> tuple[GatedModel, GateTraining] | None:
        """The gated model and its gate training, as long as masks are drawn."""
        if self._gated is None or self.gates is None or self._gated.gates.are_fixed:
            return None
        return self._gated, self.gates

    def _freeze(self, gated: GatedModel, gates: GateTraining) -> None:
        """Fix masks that meet the budgets. Gate health is measured before that."""
        self._losses.settle()  # otherwise non-finite logits would be reported first, without the step that caused them
        health = GateHealth.of(gated, gates.budget.metric, gates.budget.target(gated), self._hard)
        self._warn_of(health)
        gated.harden(*gates.budgets)

    def _warn_of(self, health: GateHealth) -> None:
        for text in health.warnings() if self.processes.is_first else ():
            logger.warning(text)

    def _train_on(self, batch: Batch, epoch: int) -> None:
        """One step of the optimisers; none if the loss is not finite and the batch may be skipped."""
        drawn = self._drawn()
        if drawn is not None and self.step == drawn[1].freeze_after:
            self._freeze(*drawn)
            drawn = None
        self._scheduler.step_update(self.step)
        device = self.processes.device
        inputs, labels = batch[0].to(device, non_blocking=True), labels_to(batch[1], device)
        before = self._float_buffers() if self.plan.nonfinite_batches else None
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        place = Place(epoch, self.step, self._rate, batch[2] if len(batch) > 2 else None)
        value: float | torch.Tensor = 0.0
        count = self.plan.accumulation_steps
        parts = list(zip(inputs.chunk(count), chunks(labels, count), strict=True))
        for number, (some_inputs, some_labels) in enumerate(parts, start=1):
            last = number == len(parts)
            with nullcontext() if last else self.processes.without_averaging(self._prepared):
                loss = self._loss_of(some_inputs, some_labels)
                result = self._losses.of(loss, place)
                if result is None:
                    self._undo(before or [])
                    break
                share = len(some_inputs) / len(inputs)
                value = result if len(parts) == 1 else value + share * result
                loss = loss if len(parts) == 1 else loss * share
                if last and drawn is not None:
                    gated, gates = drawn
                    for budget in gates.budgets:
                        loss = loss + budget.penalty(gated)
                self.processes.backward(loss)
        else:
            self._update(drawn)
            self._losses.add(value, len(inputs), place)
        if self.gates is not None:
            self.gates.tau.step()
        self.step += 1

    @property
    def newest_loss(self) -> float | None:
        """The last loss known without synchronising with the device; None at first."""
        return self._losses.newest

    @property
    def _rate(self) -> float:
        """Learning rate of the weights at the current step."""
        return float(self._optimizers[0].param_groups[0]["lr"])

    def _loss_of(self, inputs: torch.Tensor, labels: Any) -> torch.Tensor:
        scores = self._prepared(inputs)
        if self._loss is not None:
            loss = self._loss(scores, labels)
        else:
            loss = F.cross_entropy(scores, labels, label_smoothing=self.plan.label_smoothing)
        return loss if self._distillation is None else self._distillation.loss(inputs, scores, loss)

    def _update(self, drawn: tuple[GatedModel, GateTraining] | None) -> None:
        if self.plan.clip_norm is not None:
            self.processes.clip(self._weights, self.plan.clip_norm)
        self.processes.step(self._optimizers[:1] if drawn is None else self._optimizers)  # the first is the weights'
        if self._average is not None:
            self._average.update(self.model, self.step)
        if drawn is not None:
            gated, gates = drawn
            gated.gates.clamp_()
            for budget in gates.budgets:
                budget.step()

    def _undo(self, before: list[torch.Tensor]) -> None:
        """Restore the state from before the skipped batch."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        self._put_back(before)

    def _buffers(self) -> list[torch.Tensor]:
        """Running statistics, which a forward pass changes."""
        return [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]

    def _float_buffers(self) -> list[torch.Tensor]:
        return [buffer.clone() for buffer in self._buffers()]

    def _uses_all(self, inputs: torch.Tensor) -> bool:
        """Whether a forward pass in training mode uses every parameter. All state is restored afterwards."""
        states, buffers, training = random_states(), self._float_buffers(), self.model.training
        noise = None if self._gated is None else self._gated.gates.generator.get_state()
        outputs = tree_leaves(self.model.train()(inputs.to(self.processes.device)))
        floats = [out for out in outputs if isinstance(out, torch.Tensor) and out.requires_grad]
        self.processes.backward(torch.stack([out.float().sum() for out in floats]).sum())
        used = all(p.grad is not None for p in self.model.parameters() if p.requires_grad)
        self.model.zero_grad()
        self.model.train(training)
        set_random_states(states)
        if self._gated is not None and noise is not None:
            self._gated.gates.generator.set_state(noise)
        self._put_back(buffers)
        return used

    @torch.no_grad()
    def _put_back(self, saved: list[torch.Tensor]) -> None:
        for buffer, before in zip(self._buffers(), saved, strict=True):
            buffer.copy_(before)

    def _record(self, epoch: int, accuracy: Callable[[nn.Module], float]) -> EpochRecord:
        self._losses.settle()
        self.processes.agree_on_buffers(self.model)
        measured = self.model if self._average is None else self._average.module
        self.processes.agree_on_buffers(measured)
        costs: dict[str, Any] = {}
        if self._gated is not None and self.gates is not None:
            gated, metric = self._gated, self.gates.budget.metric
            health = GateHealth.of(gated, metric, self.gates.budget.target(gated), self._hard)
            self._hard = gated.gates.hard_mask().clone()
            costs = gate_figures(gated, self.gates, health)
            if epoch == self.plan.epochs - 1 and self._drawn() is not None:
                self._warn_of(health)
        mean = self._losses.mean()
        return EpochRecord(self.plan.stage, epoch + 1, self.step, mean, accuracy(measured), self._rate, **costs)

    def _finish(self) -> None:
        if self._average is not None:
            self.model.load_state_dict(self._average.module.state_dict())
        self.processes.release(self._prepared)


def fit(
    model: nn.Module,
    batches: Callable[[int], Iterable[Batch]],
    steps_per_epoch: int,
    plan: TrainingPlan,
    accuracy: Callable[[nn.Module], float],
    gates: GateTraining | None = None,
    distillation: Distillation | None = None,
) -> Iterator[EpochRecord]:
    """Train from the first step to the last; yield a record after each epoch. See `Fit` for the arguments."""
    return Fit(model, plan, steps_per_epoch, gates, distillation).epochs(lambda epoch, _: batches(epoch), accuracy)
