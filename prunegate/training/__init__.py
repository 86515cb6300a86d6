"""Training weights and gates together under a budget."""

from __future__ import annotations

from prunegate.training.batch_norm import reestimate_batch_norm
from prunegate.training.budget import Budget
from prunegate.training.distillation import Distillation
from prunegate.training.evaluation import Metric, evaluate
from prunegate.training.fit import Batch, Fit, Loss, fit
from prunegate.training.gate_steps import GateSteps
from prunegate.training.health import GateHealth
from prunegate.training.plans import GateTraining, TrainingPlan
from prunegate.training.processes import Processes, random_states, set_random_states
from prunegate.training.reconstruction import reconstruct
from prunegate.training.records import EpochRecord
from prunegate.training.recovery import Recovery, recover
from prunegate.training.tau import TauSchedule, tau_at

__all__ = [
    "Batch",
    "Budget",
    "Distillation",
    "EpochRecord",
    "Fit",
    "GateHealth",
    "GateSteps",
    "GateTraining",
    "Loss",
    "Metric",
    "Processes",
    "Recovery",
    "TauSchedule",
    "TrainingPlan",
    "evaluate",
    "fit",
    "random_states",
    "reconstruct",
    "recover",
    "reestimate_batch_norm",
    "set_random_states",
    "tau_at",
]
