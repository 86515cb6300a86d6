"""Optimisers, the schedule of the rate, and the average of the weights: timm's, by name."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn

from prunegate.training.plans import TrainingPlan
from prunegate.wrapping import GatedModel


def weight_optimizer(weights: nn.Module, plan: TrainingPlan) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        weights,
        opt=plan.optimizer,
        lr=plan.learning_rate,
        weight_decay=plan.weight_decay,
        momentum=plan.momentum,
    )
    return optimizer


def logit_optimizer(gated: GatedModel, learning_rate: float) -> torch.optim.Optimizer:
    """Adam without decay.

    Adam's usual memory of ten steps keeps pushing the logits after the budget has let go of them: with a short stage
    the expected cost then falls far below its target.
    """
    return torch.optim.Adam(gated.gate_parameters(), lr=learning_rate, betas=(0.5, 0.99))


def rate_scheduler(optimizer: torch.optim.Optimizer, plan: TrainingPlan, steps_per_epoch: int) -> Any:
    """The rate by the step: `step_update` sets it, and depends on nothing but the step's number."""
    decay: dict[str, Any] = {"decay_rate": plan.decay_rate}
    if plan.scheduler == "multistep":
        decay["decay_milestones"] = list(plan.decay_epochs)
    elif plan.decay_epochs:
        decay["decay_epochs"] = plan.decay_epochs[0]
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=plan.scheduler,
        num_epochs=max(1, plan.epochs),
        warmup_epochs=plan.warmup_epochs,
        warmup_lr=0.0,
        min_lr=plan.learning_rate * plan.final_learning_rate_fraction,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
        **(decay if plan.scheduler in ("step", "multistep") else {}),
    )
    return scheduler


def weight_average(model: nn.Module, plan: TrainingPlan) -> Any:
    """timm's moving average, whose decay rises to the plan's from a short memory at the first steps; or None."""
    return None if plan.average_decay is None else ModelEmaV3(model, decay=plan.average_decay, use_warmup=True)
