"""Training weights and gates together under a budget."""

from __future__ import annotations

from prunegate.training.batch_norm import reestimate_batch_norm
from prunegate.training.budget import Budget
from prunegate.training.distillation import Distillation
from prunegate.training.fit import EpochRecord, GateTraining, TrainingPlan, evaluate, fit
from prunegate.training.gate_steps import GateSteps
from prunegate.training.health import GateHealth
from prunegate.training.tau import TauSchedule, tau_at

__all__ = [
    "Budget",
    "Distillation",
    "EpochRecord",
    "GateHealth",
    "GateSteps",
    "GateTraining",
    "TauSchedule",
    "TrainingPlan",
    "evaluate",
    "fit",
    "reestimate_batch_norm",
    "tau_at",
]
