"""Setup and end of a recipe's gate stage, for `prunegate.recipe.run` and for benchmarks of the defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunegate.recipe.schema import GatesSettings, RecoverySettings, TauSettings
from prunegate.training import Batch, Budget, GateTraining, Loss, Recovery, TauSchedule, recover
from prunegate.training.gate_steps import LOGIT_TRAVEL, steps_drawn
from prunegate.wrapping import GatedModel

# Number of batches for re-estimating BatchNorm statistics after hardening.
NORM_BATCHES = 50


def gate_training(
    gated: GatedModel,
    budgets: Sequence[Budget],
    gates: GatesSettings,
    tau: TauSettings,
    steps: int,
    frozen: float,
    seed: int,
) -> GateTraining:
    """Initialise the gates as recipes do, and return their training.

    If some gates are closed, they have been trained before and keep their logits.

    Args:
        budgets: All of them apply; records show the first.
        steps: Optimisation steps of the gate stage.
        frozen: Share of these steps, at the end, in which the gates are frozen.
        seed: Seed of the mask noise; each process derives its own from it.
    """
    if bool(gated.gates.open_units().all()):
        scores = gated.magnitudes() if gates.initial == "magnitude" else None
        gated.gates.start_at(gates.initial_keep_probability, scores, gates.initial_spread)
        gated.gates.generator.manual_seed(seed)
    drawn = steps_drawn(steps, frozen)
    schedule = TauSchedule(gated, tau.start, tau.end, drawn, tau.schedule)
    first, *others = budgets
    return GateTraining(first, schedule, gates.learning_rate or LOGIT_TRAVEL / drawn, tuple(others), drawn)


def recovery(
    gated: GatedModel,
    dense: nn.Module,
    batches: Callable[[], Iterable[Batch]],
    settings: RecoverySettings,
    loss: Loss = F.cross_entropy,
) -> Recovery:
    """The recovery that a recipe does right after hardening; see `prunegate.training.recover`."""
    has_norms = any(isinstance(module, _BatchNorm) for module in dense.modules())
    refits = settings.refit == "always" or (settings.refit == "auto" and not has_norms)
    return recover(gated, batches, dense if refits else None, settings.samples, loss)
