"""The stages of a run over one set of objects: dense, then for each budget gate → harden → compact → finetune."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from safetensors.torch import save_file
from torch import nn

from prunegate.builders import Builder
from prunegate.data import Batch, Data
from prunegate.files import replacing
from prunegate.own_code import OwnBuilder
from prunegate.recipe import folder as files
from prunegate.recipe.folder import RunFolder
from prunegate.recipe.gate_stage import NORM_BATCHES, gate_training
from prunegate.recipe.listener import Listener, RunSummary
from prunegate.recipe.schema import Recipe, StageSettings
from prunegate.report import Comparison, KeptLayer, draw_report
from prunegate.training import (
    Budget,
    Distillation,
    EpochRecord,
    GateTraining,
    TrainingPlan,
    evaluate,
    fit,
    reestimate_batch_norm,
)
from prunegate.wrapping import Compaction, GatedModel, compact

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """One compact model of a run, and its accuracy before and after finetuning."""

    fraction: float
    result: Compaction
    hardened: float
    accuracy: float


class Stages:
    """Carries a recipe out and writes what comes of it."""

    def __init__(
        self,
        recipe: Recipe,
        out: RunFolder,
        builder: Builder | OwnBuilder,
        model: nn.Module,
        wrap: Callable[[nn.Module], GatedModel],
        data: Data,
        listener: Listener | None,
    ) -> None:
        self.recipe, self.out, self.builder, self.dense, self.data = recipe, out, builder, model, data
        self.wrap, self.listener = wrap, listener
        self.records: list[dict[str, Any]] = []
        untrained = wrap(model)
        self.dense_macs, self.groups = untrained.dense_cost("macs"), untrained.groups
        self.epochs_done = 0

    def finish(self) -> RunSummary:
        """All stages. Models of several budgets are nested: each goes on from the gates of the one before."""
        dense_accuracy = self._train_dense()
        gated = self.wrap(self.dense)
        outcomes: list[Outcome] = []
        for fraction in self.recipe.budget.fractions:
            if outcomes:
                gated.gates.close_removed()
            self._train_gates(gated, fraction, outcomes[-1].fraction if outcomes else 1.0)
            hardened = self._harden(gated, fraction)
            result = compact(gated)
            self._note(f"{'compact':9} {_kept(gated)} units kept; the compact model computes what the gated one did")
            self._fit(result.model, self._plan("finetune", self.recipe.stages.finetune))
            outcomes.append(Outcome(fraction, result, hardened, self._accuracy(result.model)))
        return self._report(outcomes, dense_accuracy)

    def _train_dense(self) -> float:
        self._fit(self.dense, self._plan("dense", self.recipe.stages.dense))
        with replacing(self.out.file(files.DENSE)) as temporary:
            save_file({k: v.contiguous() for k, v in self.dense.state_dict().items()}, temporary)
        return self._accuracy(self.dense)

    def _train_gates(self, gated: GatedModel, fraction: float, before: float) -> None:
        stage = self.recipe.stages.gate
        steps = stage.epochs * self.data.steps_per_epoch
        ramp = round(stage.target_ramp * steps)
        budget = Budget(self.recipe.budget.metric, fraction, ramp_steps=ramp, ramp_from=before)
        gates = gate_training(gated, budget, self.recipe.gates, self.recipe.tau, steps, self.recipe.seed)
        self._fit(gated, self._plan("gate", stage, stage.final_learning_rate_fraction), gates)

    def _harden(self, gated: GatedModel, fraction: float) -> float:
        budget = Budget(self.recipe.budget.metric, fraction)
        gated.harden(budget)
        batches = itertools.islice(self._train_batches(0), NORM_BATCHES)
        reestimate_batch_norm(gated, (images for images, *_ in batches))
        accuracy = self._accuracy(gated)
        share = gated.realised_cost(budget.metric) / gated.dense_cost(budget.metric)
        self._note(f"{'harden':9} {budget.metric} {share:.4f} of dense  accuracy {accuracy:.2%}")
        return accuracy

    def _report(self, outcomes: list[Outcome], dense_accuracy: float) -> RunSummary:
        """Write every checkpoint; the table, the picture and the summary are of the smallest model."""
        *larger, last = outcomes
        for outcome in outcomes:
            name = files.CHECKPOINT if outcome is last else files.checkpoint_of(outcome.fraction)
            budget = {"metric": self.recipe.budget.metric, "fraction": outcome.fraction}
            extra = {"recipe": self.recipe.name, "budget": budget, "accuracy": outcome.accuracy}
            # A checkpoint never names a user's own code: such a model is handed in when it is loaded.
            builder = self.builder if isinstance(self.builder, Builder) else None
            outcome.result.save(self.out.file(name), builder=builder, extra=extra)
        result = last.result
        comparison = Comparison.measure(self.dense, result.model, (dense_accuracy, last.accuracy), self.data.shape)
        summary = {
            "recipe": self.recipe.name,
            "budget": {"metric": self.recipe.budget.metric, "fraction": last.fraction},
            "accuracy_after_hardening": last.hardened,
            "comparison": comparison.as_dict(),
            "certificate": result.certificate.as_dict(),
            "larger": [
                {
                    "file": files.checkpoint_of(outcome.fraction),
                    "fraction": outcome.fraction,
                    "accuracy_after_hardening": outcome.hardened,
                    "accuracy": outcome.accuracy,
                    "costs": outcome.result.costs,
                    "certificate": outcome.result.certificate.as_dict(),
                }
                for outcome in larger
            ],
        }
        self.out.write(files.SUMMARY, json.dumps(summary, indent=2))
        kept = result.plan.kept
        layers = [KeptLayer(group.name, len(kept[group.name]), group.num_units) for group in self.groups]
        share = comparison.compact.macs / self.dense_macs
        title = f"{self.recipe.name}: {self.builder.full_name}, {share:.1%} of the MACs"
        draw_report(self.out.file(files.REPORT), title, self.records, layers, self.dense_macs)
        for outcome in larger:
            name, costs = files.checkpoint_of(outcome.fraction), outcome.result.costs["macs"]
            self._note(f"{name}: {costs['compact'] / costs['dense']:.4f} of the MACs, accuracy {outcome.accuracy:.2%}")
        if self.listener is not None:
            self.listener.finished(comparison, result.certificate.as_dict(), str(self.out.path))
        costs = result.costs["macs"]
        return RunSummary(self.out.path, comparison, last.hardened, costs["compact"], costs["dense"])

    # ---------------------------------------------------------------------------------------------

    def _plan(self, name: str, stage: StageSettings, final_fraction: float = 0.0) -> TrainingPlan:
        optimizer = self.recipe.optimizer
        return TrainingPlan(
            name,
            stage.epochs,
            stage.learning_rate,
            optimizer.name,
            optimizer.momentum,
            optimizer.weight_decay,
            optimizer.label_smoothing,
            stage.warmup_epochs,
            final_fraction,
        )

    def _fit(self, model: nn.Module, plan: TrainingPlan, gates: GateTraining | None = None) -> None:
        if self.listener is not None:
            self.listener.stage_started(plan.stage, plan.epochs)
        first = self.epochs_done
        for record in fit(
            model,
            lambda epoch: self._train_batches(first + epoch),
            self.data.steps_per_epoch,
            plan,
            self._accuracy,
            gates,
            None if plan.stage == "dense" else self._distillation(),
        ):
            self._epoch_ended(record)

    def _distillation(self) -> Distillation | None:
        settings = self.recipe.distillation
        return Distillation(self.dense, settings.weight, settings.temperature) if settings.weight else None

    def _epoch_ended(self, record: EpochRecord) -> None:
        self.epochs_done += 1
        fields = record.as_dict()
        self.records.append(fields)
        self.out.append_metrics(fields)
        if self.listener is not None:
            self.listener.epoch_ended(fields, self.dense_macs)

    def _train_batches(self, epoch: int) -> Iterator[Batch]:
        return self.data.train_batches(self.recipe.seed, epoch)

    def _accuracy(self, model: nn.Module) -> float:
        return evaluate(model, self.data.test_batches())

    def _note(self, text: str) -> None:
        logger.info(text)
        if self.listener is not None:
            self.listener.note(text)


def _kept(gated: GatedModel) -> str:
    kept = sum(int(mask.sum()) for mask in gated.masks().values())
    return f"{kept:,} of {gated.analysis.num_units:,}"
