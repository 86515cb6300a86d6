"""prunegate on a task, with the defaults of its recipes: one setting for all tasks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import nn

import prunegate
from accuracy.measure import macs_of
from accuracy.tasks import Task, batches, data_of, example, train
from prunegate.recipe.schema import GatesSettings, GateStageSettings, TauSettings
from prunegate.training import Budget, GateTraining, TauSchedule, reestimate_batch_norm

# Epochs of the gate stage as a share of all.
GATE_SHARE = 0.4
_NORM_BATCHES = 50


def pruned(
    method: str, dense: nn.Module, task: Task, seed: int, fractions: tuple[float, ...], dense_macs: int
) -> Iterator[tuple[float, nn.Module, int]]:
    """The compact model for each budget, with the gate epochs spent on it."""
    del method
    spent = max(1, round(GATE_SHARE * task.epochs))
    defaults, tau = GatesSettings(), TauSettings()
    ramp = GateStageSettings.model_fields["target_ramp"].default
    for fraction in fractions:
        gated = prunegate.wrap(dense, example(task))
        gated.gates.start_at(defaults.initial_keep_probability)
        gated.gates.generator.manual_seed(seed)
        steps = spent * data_of(task.name).steps_per_epoch
        # The limit is that of the counter which everybody is measured with.
        budget = Budget("macs", limit=int(fraction * dense_macs), ramp_steps=round(ramp * steps))
        schedule = TauSchedule(gated, tau.start, tau.end, steps, tau.schedule)
        gates = GateTraining(budget, schedule, defaults.learning_rate)
        train(gated, task, seed, task.plan("gate", spent, constant=True), gates=gates)
        gated.harden(budget)
        reestimate_batch_norm(gated, (images for images, _ in itertools.islice(batches(task, seed, 0), _NORM_BATCHES)))
        compact = prunegate.compact(gated).model
        assert macs_of(compact, task) <= budget.limit_for(dense_macs)
        yield fraction, compact, spent
