"""A whole run: dense → gate → harden → compact → finetune, into one folder."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import set_seed
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from prunegate.builders import Builder
from prunegate.errors import BudgetError, RecipeError
from prunegate.files import replacing
from prunegate.recipe import folder as files
from prunegate.recipe.data import Batch, ImageData, load_data
from prunegate.recipe.folder import RunFolder, environment
from prunegate.recipe.gate_stage import NORM_BATCHES, gate_training
from prunegate.recipe.load import check_recipe
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
from prunegate.wrapping import Compaction, GatedModel, compact, wrap
from prunegate.wrapping.gated_model import unreachable

logger = logging.getLogger(__name__)


class Listener(Protocol):
    """Who wants to see a run go by."""

    def stage_started(self, stage: str, epochs: int) -> None: ...
    def epoch_ended(self, record: Mapping[str, Any], dense_macs: int) -> None: ...
    def note(self, text: str) -> None: ...
    def finished(self, comparison: Comparison, certificate: Mapping[str, Any], folder: str) -> None: ...


@dataclass(frozen=True)
class RunSummary:
    """What a run came to."""

    folder: Path
    comparison: Comparison
    accuracy_after_hardening: float
    realised_macs: int
    dense_macs: int


def run(recipe: Recipe, folder: Path | None = None, listener: Listener | None = None) -> RunSummary:
    """Carry out a recipe.

    Everything that can be found out before training is checked first: the folder, the model, the data,
    what can be pruned and whether the budget can be reached. Until then nothing is written.

    Raises:
        PrunegateError: Of the kind that says what is wrong.
    """
    out = RunFolder.refuse_used(folder or recipe.folder)
    check_recipe(recipe)
    set_seed(recipe.seed)
    builder = Builder.parse(recipe.model.name, recipe.model.arguments)
    model = builder.build()
    _load_weights(model, recipe.model.weights)
    data = load_data(recipe.data)
    _check_output(model, data, recipe)
    _wrap(recipe, model, data)  # refuses now what could not be pruned after an hour of training
    out.create()
    out.write(files.RECIPE, recipe.dump_yaml())
    out.write("environment.json", json.dumps(environment(recipe.seed), indent=2))
    return _Run(recipe, out, builder, model, data, listener).finish()


class _Run:
    """The stages of one run over one set of objects."""

    def __init__(
        self,
        recipe: Recipe,
        out: RunFolder,
        builder: Builder,
        model: nn.Module,
        data: ImageData,
        listener: Listener | None,
    ) -> None:
        self.recipe, self.out, self.builder, self.dense, self.data = recipe, out, builder, model, data
        self.listener = listener
        self.records: list[dict[str, Any]] = []
        self.dense_macs = 0
        self.epochs_done = 0

    def finish(self) -> RunSummary:
        dense_accuracy = self._train_dense()
        gated = self._train_gates()
        hardened_accuracy = self._harden(gated)
        result = compact(gated)
        self._note(f"{'compact':9} {_kept(gated)} units kept; the compact model computes what the gated one did")
        accuracy = self._finetune(result)
        return self._report(result, gated, (dense_accuracy, accuracy), hardened_accuracy)

    def _train_dense(self) -> float:
        stage = self.recipe.stages.dense
        self.dense_macs = _wrap(self.recipe, self.dense, self.data).dense_cost("macs")
        self._fit(self.dense, self._plan("dense", stage))
        with replacing(self.out.file(files.DENSE)) as temporary:
            save_file({k: v.contiguous() for k, v in self.dense.state_dict().items()}, temporary)
        return self._accuracy(self.dense)

    def _train_gates(self) -> GatedModel:
        stage = self.recipe.stages.gate
        gated = _wrap(self.recipe, self.dense, self.data)
        steps = stage.epochs * self.data.steps_per_epoch
        settings = self.recipe.budget
        budget = Budget(settings.metric, settings.fraction, ramp_steps=round(stage.target_ramp * steps))
        gates = gate_training(gated, budget, self.recipe.gates, self.recipe.tau, steps, self.recipe.seed)
        self._fit(gated, self._plan("gate", stage, stage.final_learning_rate_fraction), gates)
        return gated

    def _harden(self, gated: GatedModel) -> float:
        budget = Budget(self.recipe.budget.metric, self.recipe.budget.fraction)
        gated.harden(budget)
        batches = itertools.islice(self._train_batches(0), NORM_BATCHES)
        reestimate_batch_norm(gated, (images for images, _ in batches))
        accuracy = self._accuracy(gated)
        share = gated.realised_cost(budget.metric) / gated.dense_cost(budget.metric)
        self._note(f"{'harden':9} {budget.metric} {share:.4f} of dense  accuracy {accuracy:.2%}")
        return accuracy

    def _finetune(self, result: Compaction) -> float:
        self._fit(result.model, self._plan("finetune", self.recipe.stages.finetune))
        return self._accuracy(result.model)

    def _report(
        self, result: Compaction, gated: GatedModel, accuracies: tuple[float, float], hardened: float
    ) -> RunSummary:
        comparison = Comparison.measure(self.dense, result.model, accuracies, self.data.shape)
        summary = {
            "recipe": self.recipe.name,
            "budget": self.recipe.budget.model_dump(),
            "accuracy_after_hardening": hardened,
            "comparison": comparison.as_dict(),
            "certificate": result.certificate.as_dict(),
        }
        extra = {"recipe": self.recipe.name, "budget": summary["budget"], "accuracy": accuracies[1]}
        result.save(self.out.file(files.CHECKPOINT), builder=self.builder, extra=extra)
        self.out.write(files.SUMMARY, json.dumps(summary, indent=2))
        layers = [KeptLayer(group.name, len(result.plan.kept[group.name]), group.num_units) for group in gated.groups]
        share = comparison.compact.macs / self.dense_macs
        title = f"{self.recipe.name}: {self.builder.full_name}, {share:.1%} of the MACs"
        draw_report(self.out.file(files.REPORT), title, self.records, layers, self.dense_macs)
        if self.listener is not None:
            self.listener.finished(comparison, result.certificate.as_dict(), str(self.out.path))
        return RunSummary(
            self.out.path,
            comparison,
            hardened,
            result.costs["macs"]["compact"],
            result.costs["macs"]["dense"],
        )

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


def _wrap(recipe: Recipe, model: nn.Module, data: ImageData) -> GatedModel:
    """Wrap the model and refuse a budget that its gates cannot reach."""
    gated = wrap(
        model,
        torch.zeros(2, *data.shape, device=next(iter(model.parameters())).device),
        exclude=recipe.gates.exclude,
        round_to=recipe.gates.round_to,
    )
    metric = recipe.budget.metric
    limit = Budget(metric, recipe.budget.fraction).limit_for(gated.dense_cost(metric))
    if limit < gated.least_cost(metric):
        raise BudgetError(unreachable(gated, metric, limit))
    return gated


def _load_weights(model: nn.Module, path: str | None) -> None:
    if path is None:
        return
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise RecipeError(f"model.weights: {path}: does not fit the model: {error}") from error


def _check_output(model: nn.Module, data: ImageData, recipe: Recipe) -> None:
    """One batch through the model: does it take such images and tell these classes apart?"""
    mode = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(data.train_images[:2])
    except (RuntimeError, AssertionError, ValueError) as error:
        raise RecipeError(
            f"model: {recipe.model.name} does not take images of shape {data.shape}: {error}. "
            "Set model.arguments (in_chans, img_size) or data.image_size to fit."
        ) from error
    finally:
        model.train(mode)
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2 or logits.shape[1] < data.num_classes:
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise RecipeError(
            f"model: {recipe.model.name} returns {found} for two images, expected (2, {data.num_classes}). "
            f"Set model.arguments.num_classes to {data.num_classes}."
        )


def _kept(gated: GatedModel) -> str:
    kept = sum(int(mask.sum()) for mask in gated.masks().values())
    return f"{kept:,} of {gated.analysis.num_units:,}"
