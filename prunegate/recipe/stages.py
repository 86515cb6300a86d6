"""The stages of a run over one set of objects: dense, then for each budget gate → harden → compact → finetune."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from prunegate.builders import Builder
from prunegate.data import Data, Share
from prunegate.errors import DivergedError, PrunegateError, RunStoppedError
from prunegate.latency import Latency
from prunegate.own_code import OwnBuilder
from prunegate.recipe import folder as files
from prunegate.recipe.folder import RunFolder
from prunegate.recipe.gate_stage import NORM_BATCHES, gate_training, recovery
from prunegate.recipe.header import run_start
from prunegate.recipe.listener import Listener, RunSummary
from prunegate.recipe.plans import plan_of
from prunegate.recipe.results import Results
from prunegate.recipe.resuming import resume_command
from prunegate.recipe.schema import Recipe
from prunegate.recipe.state import Outcome, RunState, place
from prunegate.recipe.step_checkpoints import StepCheckpoints
from prunegate.report import metric_name, metric_text
from prunegate.training import (
    Batch,
    Budget,
    Distillation,
    Fit,
    GateTraining,
    Loss,
    Metric,
    Processes,
    Recovery,
    evaluate,
    random_states,
    set_random_states,
)
from prunegate.wrapping import Compaction, GatedModel, compact


class Stages:
    """Runs the stages of a recipe and writes the results.

    Args:
        untrained: The gated model before training, for its channel groups and costs.
        wrap: Puts gates on a model.
        stop: Returns the number of a signal that asks the run to stop, or 0; polled after every step.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: RunFolder,
        builder: Builder | OwnBuilder,
        model: nn.Module,
        untrained: GatedModel,
        wrap: Callable[[nn.Module], GatedModel],
        data: Data,
        loss: Loss | None,
        metric: Metric | None,
        processes: Processes,
        listener: Listener,
        stop: Callable[[], int],
    ) -> None:
        self.recipe, self.out, self.dense, self.data = recipe, out, model, data
        self.wrap, self.loss, self.processes, self.listener, self.stop = wrap, loss, processes, listener, stop
        self.metric = metric
        self._head = partial(run_start, recipe, builder, untrained, data, processes, out.path)
        self.results = Results(recipe, out, builder, listener, data.meaning)
        self.share = Share(processes.rank, processes.count)
        self.checkpoints = StepCheckpoints(out.path, recipe.checkpoints)
        self.dense_macs, self.groups = int(untrained.dense_cost("macs")), untrained.groups
        self.budget = recipe.budget.of_dense(untrained.dense_cost(recipe.budget.metric))
        self.records: list[dict[str, Any]] = []
        self.outcomes: list[Outcome] = []
        self.epochs_done = self._steps_before = 0
        self._resumed: RunState | None = None
        # The current stage, for checkpoints.
        self._stage, self._budget = "dense", 0
        self._hardened: float | None = None
        self._models: dict[str, nn.Module] = {}

    def finish(self, state: RunState | None = None) -> RunSummary:
        """Run all stages, from the first one or from ``state`` on.

        Models of several budgets are nested: each continues from the gates of the previous one.
        """
        if state is not None:
            self._resumed, self.records, self.epochs_done = state, list(state.records), state.epochs_done
            self.outcomes = [Outcome(**outcome) for outcome in state.outcomes]
        self.listener.run_started(self._head(state))
        self._dense_stage()
        gated = self.wrap(self.dense)
        result: Compaction | None = None
        for index in range(len(self.outcomes), len(self.budget.fractions)):
            self._budget = index
            result = self._one_budget(gated, self.budget.fractions[index])
        if result is None:
            raise AssertionError("a state is saved before its budget's outcome is noted")
        units = {group.name: group.num_units for group in self.groups}
        summary = self.results.finish(
            self.dense, self.dense_accuracy, result, self.outcomes, self.records, units, self.data.shape
        )
        if self.out.writes:
            self.checkpoints.remove()
        return summary

    def _dense_stage(self) -> None:
        if self._is_past("dense"):
            self.dense.load_state_dict(load_file(self.out.file(files.DENSE)))
            self.processes.place(self.dense)
        else:
            self._train("dense", self.dense, {"dense": self.dense})
            self.out.write_tensors(files.DENSE, self.dense.state_dict())
        self.dense_accuracy = self._accuracy(self.dense)

    def _one_budget(self, gated: GatedModel, fraction: float) -> Compaction:
        if self._is_past("gate"):
            assert self._resumed is not None
            gated.load_state_dict(self._resumed.models["gated"])
            self._hardened = self._resumed.hardened
        else:
            self._gate_stage(gated, fraction)
            self._hardened = self._harden(gated, fraction)
        assert self._hardened is not None
        result = compact(gated)
        self._note(f"{'compact':9} {_kept(gated)} units kept; the compact model computes the same as the gated one")
        self._train("finetune", result.model, {"gated": gated, "compact": result.model})
        kept = {name: len(units) for name, units in result.plan.kept.items()}
        certificate = result.certificate.as_dict()
        accuracy = self._accuracy(result.model)
        costs: dict[str, Any] = dict(result.costs)
        if "latency_ms" in self.budget.shares(fraction):
            costs["latency_ms"] = self._latency(gated, self.budget.shares(fraction)["latency_ms"])
        outcome = Outcome(fraction, self._hardened, accuracy, costs, certificate, kept)
        self.results.save(result, outcome)
        self.outcomes.append(outcome)
        return result

    def _latency(self, gated: GatedModel, share: float) -> dict[str, float]:
        """Dense, asked, predicted and measured milliseconds of the compact model."""
        latency = gated.latency
        assert isinstance(latency, Latency)
        keep = gated.gates.hard_mask().cpu().numpy()
        told = {
            "dense": latency.dense_ms,
            "asked": share * latency.dense_ms,
            "predicted": latency.predicted(keep),
            "compact": latency.milliseconds(keep),
        }
        self._note(
            f"{'latency':9} asked {told['asked']:.3g} ms, predicted {told['predicted']:.3g} ms, measured "
            f"{told['compact']:.3g} ms; dense {told['dense']:.3g} ms"
        )
        return told

    def _gate_stage(self, gated: GatedModel, fraction: float) -> None:
        recipe, stage = self.recipe, self.recipe.stages.gate
        before = self.outcomes[-1].fraction if self.outcomes else 1.0
        if self.outcomes and not self._is_at("gate"):
            gated.gates.close_removed()
        steps = stage.epochs * self.data.steps_per_epoch
        ramp = round(stage.target_ramp * steps)
        budgets = [
            Budget(metric, share, ramp_steps=ramp, ramp_from=before)
            for metric, share in self.budget.shares(fraction).items()
        ]
        gates = gate_training(gated, budgets, recipe.gates, recipe.tau, steps, stage.frozen, recipe.seed)
        self._train("gate", gated, {"gated": gated}, gates)

    def _harden(self, gated: GatedModel, fraction: float) -> float:
        budgets = [Budget(metric, share) for metric, share in self.budget.shares(fraction).items()]
        gated.harden(*budgets)
        result = self._recover(gated)
        accuracy = self._accuracy(gated)
        kept = (f"{b.metric} {gated.realised_cost(b.metric) / gated.dense_cost(b.metric):.4f}" for b in budgets)
        name = metric_name(self.recipe.training.metric)
        told = f"{name} {metric_text(accuracy, name)}"
        refitted = f"  {result.layers} layers refitted" if result.refitted else ""
        self._note(f"{'harden':9} {', '.join(kept)} of dense  {told}{refitted}")
        return accuracy

    def _recover(self, gated: GatedModel) -> Recovery:
        def batches() -> Iterator[Batch]:
            """Whole batches in every process, so that all compute the same weights and statistics."""
            return itertools.islice(self.data.train_batches(self.recipe.seed, 0), NORM_BATCHES)

        dense = self.dense.to(self.processes.device)
        return recovery(gated, dense, batches, self.recipe.recovery, self.loss or F.cross_entropy)

    # ---------------------------------------------------------------------------------------------

    def _train(
        self, stage: str, model: nn.Module, models: dict[str, nn.Module], gates: GateTraining | None = None
    ) -> None:
        """Train one stage, from its start or from the resumed state."""
        self._stage, self._models = stage, models
        plan = plan_of(self.recipe, stage)
        self.listener.stage_started(stage, plan.epochs)
        distillation = None if stage == "dense" else self._distillation()
        steps, example = self.data.steps_per_epoch, self.data.example_inputs(2)
        fit = Fit(model, plan, steps, gates, distillation, self.loss, self.processes, example)
        if self._is_at(stage):
            self._take_up(fit)
        first = self.epochs_done - fit.step // self.data.steps_per_epoch
        self._steps_before = first * self.data.steps_per_epoch
        began = time.perf_counter()
        try:
            for record in fit.epochs(
                lambda epoch, start: self._train_batches(first + epoch, start),
                self._accuracy,
                lambda: self._step_ended(fit),
            ):
                self._epoch_ended(record.as_dict(), time.perf_counter() - began)
                began = time.perf_counter()
            if plan.epochs:
                self._save(fit)
        except DivergedError as error:
            raise DivergedError(f"{error} {self._where_to_resume()} --accept-changes --set KEY.PATH=VALUE") from error

    def _take_up(self, fit: Fit) -> None:
        """Restore the resumed state."""
        state = self._resumed
        assert state is not None
        for name, model in self._models.items():
            model.load_state_dict(state.models[name])
        fit.load_state_dict(state.fit)
        set_random_states(state.processes[self.processes.rank])
        self._resumed = None
        self._note(f"{'resume':9} {state.stage}, after {fit.step:,} steps of this stage")

    def _step_ended(self, fit: Fit) -> None:
        samples = min(self.data.batch_size, self.data.num_train)
        self.listener.step_ended(fit.step / self.data.steps_per_epoch, fit.newest_loss, samples)
        # The first process's clock decides for all; a signal to any of them stops all.
        due = self.checkpoints.due(self._steps_before + fit.step)
        signals, wishes = self.processes.gathered(self.stop(), due)
        signal = int(max(signals))
        if wishes[0] or signal:
            self._save(fit)
        if signal:
            raise RunStoppedError(
                f"{self.out.path}: stopped by signal {signal} after {self._steps_before + fit.step:,} steps, and "
                f"saved. {self._where_to_resume()}",
                signal,
            )

    def _save(self, fit: Fit) -> None:
        """Write the state; a state with non-finite numbers is never written, so the last one can always be resumed.

        Raises:
            DivergedError: The last loss is not finite, or weights are not, which would show in the next loss.
        """
        fitted = fit.state_dict()  # first, as its error names the step and samples
        lost = [name for name, p in fit.model.named_parameters() if not bool(torch.isfinite(p).all())]
        if lost:
            raise DivergedError(
                f"{self._stage}, step {fit.step}: found weights that are not finite in {', '.join(lost[:3])} and "
                f"{max(0, len(lost) - 3)} more, expected numbers. A gradient has overflowed. Set training.clip_norm, "
                f"or lower stages.{self._stage}.learning_rate."
            )
        processes = self.processes.gathered_objects(random_states())
        state = RunState(
            self._stage,
            self._budget,
            self._steps_before + fit.step,
            self.epochs_done,
            fitted,
            {name: model.state_dict() for name, model in self._models.items()},
            self.records,
            [outcome.as_dict() for outcome in self.outcomes],
            self._hardened if self._stage == "finetune" else None,
            processes,
        )
        self.processes.by_first(lambda: self.checkpoints.save(state), PrunegateError)

    def _is_at(self, stage: str) -> bool:
        return self._resumed is not None and self._resumed.place == place(stage, self._budget)

    def _is_past(self, stage: str) -> bool:
        """Whether the resumed state is from a later stage."""
        return self._resumed is not None and self._resumed.place > place(stage, self._budget)

    def _where_to_resume(self) -> str:
        return f"Resume from the last checkpoint with: {resume_command(self.out.path, self.processes.count)}"

    def _distillation(self) -> Distillation | None:
        settings = self.recipe.distillation
        return Distillation(self.dense, settings.weight, settings.temperature) if settings.weight else None

    def _epoch_ended(self, fields: dict[str, Any], seconds: float) -> None:
        self.epochs_done += 1
        self.records.append(fields)
        timing = {"stage": fields["stage"], "epoch": fields["epoch"], "seconds": seconds}

        def write() -> None:
            self.out.append(files.METRICS, fields)
            self.out.append(files.TIMINGS, timing)

        self.processes.by_first(write, PrunegateError)
        self.listener.epoch_ended(fields, self.dense_macs)

    def _train_batches(self, epoch: int, first: int) -> Iterator[Batch]:
        return self.data.train_batches(self.recipe.seed, epoch, first, self.share)

    def _accuracy(self, model: nn.Module) -> float:
        return evaluate(model, self.data.test_batches(self.share), self.processes, self.metric)

    def _note(self, text: str) -> None:
        self.listener.note(text)


def _kept(gated: GatedModel) -> str:
    kept = sum(int(mask.sum()) for mask in gated.masks().values())
    return f"{kept:,} of {gated.analysis.num_units:,}"
