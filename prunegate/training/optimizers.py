"""Optimisers, learning-rate schedules and weight averages from timm, by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn

from prunegate.training.plans import TrainingPlan
from prunegate.wrapping import GatedModel


def weight_optimizer(weights: nn.Module, plan: TrainingPlan) -> torch.optim.Optimizer:
    """The plan's optimiser for the parameters of a model that is already on its training device."""
    kind = plan.optimizer.lower().rpartition("_")[2]  # what timm's lookahead_ wraps
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        weights,
        opt=plan.optimizer,
        lr=plan.learning_rate,
        weight_decay=plan.weight_decay,
        momentum=plan.momentum,
        **_fused(get_optimizer_class(kind, bind_defaults=False), weights.parameters()),
    )
    if isinstance(optimizer, torch.optim.SGD):
        _start_momentum(optimizer)
    return optimizer


def logit_optimizer(gated: GatedModel, learning_rate: float) -> torch.optim.Optimizer:
    """Adam without weight decay.

    The first beta is 0.5: with the usual 0.9, momentum keeps pushing the logits after the budget is met, and in a short
    stage the expected cost then falls far below its target.
    """
    logits = list(gated.gate_parameters())
    fused = _fused(torch.optim.Adam, logits)
    # Capturable, as `GateSteps` replays the step as part of a CUDA graph.
    return torch.optim.Adam(logits, lr=learning_rate, betas=(0.5, 0.99), capturable=bool(fused), **fused)


def _fused(kind: Any, parameters: Iterable[torch.nn.Parameter]) -> dict[str, Any]:
    """Arguments for a fused step, where possible: for torch's most common optimisers, on CUDA.

    Fused optimisers also handle a scaled loss without synchronising to check whether gradients are finite.
    """
    known = "fused" in inspect.signature(kind).parameters
    return {"fused": True} if known and all(p.is_cuda and p.is_floating_point() for p in parameters) else {}


def rate_scheduler(optimizer: torch.optim.Optimizer, plan: TrainingPlan, steps_per_epoch: int) -> Any:
    """The learning-rate scheduler: `step_update` sets the rate, which depends only on the step number."""
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
    """timm's moving average of the weights, whose decay warms up to the plan's; None if the plan has none."""
    return None if plan.average_decay is None else ModelEmaV3(model, decay=plan.average_decay, use_warmup=True)


def _start_momentum(optimizer: torch.optim.SGD) -> None:
    """Start the momentum of fused SGD at zero; the first step then sets it to the gradient, as it should.

    torch leaves it uninitialised if a scaled loss makes it skip the first step, and fails if a parameter gets its first
    gradient later than others.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["fused"] and group["momentum"] else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
