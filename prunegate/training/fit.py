"""The training loop, on Accelerate and timm: one stage of a run."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from prunegate.errors import PrunegateError
from prunegate.training.budget import Budget
from prunegate.training.distillation import Distillation
from prunegate.training.health import GateHealth
from prunegate.training.tau import TauSchedule
from prunegate.wrapping import GatedModel

logger = logging.getLogger(__name__)

Batch = tuple[torch.Tensor, ...]  # inputs, labels, and what else there may be


class DivergedError(PrunegateError):
    """The loss is no number any more."""


@dataclass(frozen=True)
class TrainingPlan:
    """How the weights are trained in one stage.

    Attributes:
        learning_rate: Peak rate of the weights; it falls to zero along a cosine over the stage.
        optimizer: Any name that timm's `create_optimizer_v2` knows.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
    """

    stage: str
    epochs: int
    learning_rate: float
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    warmup_epochs: float = 0.0
    final_learning_rate_fraction: float = 0.0


@dataclass(frozen=True)
class GateTraining:
    """What the gate stage adds: a budget, an annealed tau, and the logits' own optimiser (Adam, no decay)."""

    budget: Budget
    tau: TauSchedule
    learning_rate: float


@dataclass(frozen=True)
class EpochRecord:
    """One line of ``metrics.jsonl``. Costs are MACs per sample; those of the dense stage are the dense ones."""

    stage: str
    epoch: int
    step: int
    loss: float
    accuracy: float
    learning_rate: float
    seconds: float
    tau: float | None = None
    expected_macs: float | None = None
    realised_macs: int | None = None
    target_macs: float | None = None
    sampled_macs: int | None = None
    multiplier: float | None = None
    undecided_share: float | None = None
    flipped_share: float | None = None
    collapsed_groups: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Totals:
    loss: float = 0.0
    count: int = 0


def fit(
    model: nn.Module,
    batches: Callable[[int], Iterable[Batch]],
    steps_per_epoch: int,
    plan: TrainingPlan,
    accuracy: Callable[[nn.Module], float],
    gates: GateTraining | None = None,
    distillation: Distillation | None = None,
) -> Iterator[EpochRecord]:
    """Train for ``plan.epochs`` epochs; give a record after each.

    Args:
        batches: The batches of an epoch by its number: (inputs, class indices).
        accuracy: Measures the model after each epoch; called in eval mode, gates hard.
        gates: Given, the model is a `GatedModel` whose logits are trained too.
        distillation: Given, a teacher's outputs are learned from beside the labels.

    Raises:
        DivergedError: The loss is not finite.
    """
    accelerator = Accelerator()
    gated = model if isinstance(model, GatedModel) else None
    weights = gated.model if gated is not None else model
    optimizer = create_optimizer_v2(
        weights,
        opt=plan.optimizer,
        lr=plan.learning_rate,
        weight_decay=plan.weight_decay,
        momentum=plan.momentum,
    )
    total_steps = max(1, plan.epochs * steps_per_epoch)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=total_steps,
        lr_min=plan.learning_rate * plan.final_learning_rate_fraction,
        warmup_t=int(plan.warmup_epochs * steps_per_epoch),
        t_in_epochs=False,
    )
    logit_optimizer = None
    if gates is not None and gated is not None:
        # Adam's usual memory of ten steps keeps pushing the logits after the budget has let go of them: with
        # a short stage the expected cost then falls far below its target.
        logit_optimizer = torch.optim.Adam(gated.gate_parameters(), lr=gates.learning_rate, betas=(0.5, 0.99))
        logit_optimizer = accelerator.prepare(logit_optimizer)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    if distillation is not None:
        distillation.teacher.to(accelerator.device)
    step = 0
    health: GateHealth | None = None
    hard = torch.empty(0)
    for epoch in range(plan.epochs):
        began = time.perf_counter()
        prepared.train()
        totals = _Totals()
        rate = plan.learning_rate
        for inputs, labels, *_ in batches(epoch):
            scheduler.step_update(step)
            rate = float(optimizer.param_groups[0]["lr"])
            inputs, labels = inputs.to(accelerator.device), labels.to(accelerator.device)
            scores = prepared(inputs)
            loss = F.cross_entropy(scores, labels, label_smoothing=plan.label_smoothing)
            if distillation is not None:
                loss = distillation.loss(inputs, scores, loss)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise DivergedError(
                    f"{plan.stage}, epoch {epoch + 1}, step {step}: the loss is {value}, expected a finite number. "
                    f"The learning rate may be too high: found {rate:.3g}. Lower stages.{plan.stage}.learning_rate."
                )
            if gates is not None and gated is not None:
                loss = loss + gates.budget.penalty(gated)
            optimizer.zero_grad()
            if logit_optimizer is not None:
                logit_optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            if logit_optimizer is not None and gates is not None and gated is not None:
                logit_optimizer.step()
                gated.gates.clamp_()
                gates.tau.step()
                gates.budget.step()
            totals.loss += value * len(labels)
            totals.count += len(labels)
            step += 1
        costs: dict[str, Any] = {}
        if gated is not None and gates is not None:
            metric = gates.budget.metric
            health = GateHealth.of(gated, metric, gates.budget.target(gated), None if health is None else hard)
            hard = gated.gates.hard_mask().clone()
            costs = _costs(gated, gates, health)
            for text in health.warnings() if epoch == plan.epochs - 1 else ():
                logger.warning(text)
        mean = totals.loss / max(totals.count, 1)
        seconds = time.perf_counter() - began
        yield EpochRecord(plan.stage, epoch + 1, step, mean, accuracy(model), rate, seconds, **costs)


def _costs(gated: GatedModel, gates: GateTraining, health: GateHealth) -> dict[str, Any]:
    """What the record of a gate epoch has besides: costs in MACs per sample whatever the budget counts."""
    in_macs = gates.budget.metric == "macs"
    return {
        "tau": gated.tau,
        "expected_macs": float(gated.expected_cost("macs").detach()),
        "realised_macs": gated.realised_cost("macs"),
        "sampled_macs": gated.sampled_cost("macs"),
        "target_macs": health.target if in_macs else None,
        "multiplier": gates.budget.multiplier,
        "undecided_share": health.undecided_share,
        "flipped_share": health.flipped_share,
        "collapsed_groups": len(health.collapsed),
    }


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Top-1 accuracy in [0, 1]; the model's mode is as before afterwards."""
    training = model.training
    model.eval()
    device = next(iter(model.parameters())).device
    correct = count = 0
    for inputs, labels, *_ in batches:
        predicted = model(inputs.to(device)).argmax(dim=1)
        correct += int((predicted == labels.to(device)).sum())
        count += len(labels)
    model.train(training)
    return correct / max(count, 1)
