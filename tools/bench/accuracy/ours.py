"""prunegate on a task, with the defaults of its recipes: one setting for all tasks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

from torch import nn

import prunegate
from accuracy.measure import macs_of
from accuracy.tasks import Task, batches, data_of, example, train
from prunegate.data import Batch
from prunegate.recipe.gate_stage import NORM_BATCHES, gate_training, recovery
from prunegate.recipe.schema import GatesSettings, GateStageSettings, RecoverySettings, TauSettings
from prunegate.training import Budget

# Epochs of the gate stage as a share of all.
GATE_SHARE = 0.2


def pruned(
    method: str,
    dense: nn.Module,
    task: Task,
    seed: int,
    fractions: tuple[float, ...],
    dense_macs: int,
    teacher: nn.Module | None = None,
) -> Iterator[tuple[float, nn.Module, int]]:
    """The compact model for each budget, with the gate epochs spent on it."""
    del method
    spent = max(1, round(GATE_SHARE * task.epochs))
    steps = spent * data_of(task.name).steps_per_epoch
    defaults = GateStageSettings(epochs=spent, learning_rate=task.learning_rate)
    for fraction in fractions:
        gated = prunegate.wrap(dense, example(task))
        # The limit is that of the counter which everybody is measured with.
        budget = Budget("macs", limit=int(fraction * dense_macs), ramp_steps=round(defaults.target_ramp * steps))
        gates = gate_training(gated, [budget], GatesSettings(), TauSettings(), steps, defaults.frozen, seed)
        plan = task.plan("gate", spent, defaults.final_learning_rate_fraction)
        train(gated, task, seed, plan, gates=gates, teacher=teacher)
        gated.harden(budget)
        recovery(gated, dense, partial(_norm_batches, task, seed), RecoverySettings())
        compact = prunegate.compact(gated).model
        assert macs_of(compact, task) <= budget.limit_for(dense_macs)
        yield fraction, compact, spent


def _norm_batches(task: Task, seed: int) -> Iterator[Batch]:
    return itertools.islice(batches(task, seed, 0), NORM_BATCHES)
