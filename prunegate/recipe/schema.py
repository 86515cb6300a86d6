"""The schema of a recipe, which describes a run as data."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from prunegate.costs import COUNTS
from prunegate.data.settings import DataSettings
from prunegate.latency import LatencySettings
from prunegate.settings import Settings

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Rate = Annotated[float, Field(gt=0.0, le=100.0)]
Epochs = Annotated[int, Field(ge=0, le=100_000)]


class ModelSettings(Settings):
    """The dense model."""

    name: str = Field(
        description="timm/<name>, torchvision/<name>, prunegate/<name>, or module:function of your own code"
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the model's builder")
    weights: str | None = Field(
        None,
        description="trained weights of the dense model: safetensors, or a state_dict in a .pth or .pt, by itself or "
        "in a trainer's checkpoint, where averaged weights come first",
    )
    trained: bool = Field(
        False,
        description="true if module:function returns a trained model; the dense stage may then be left out",
    )

    @model_validator(mode="after")
    def _trained_by_its_function(self) -> ModelSettings:
        if self.trained and ":" not in self.name:
            raise ValueError(
                f"found trained: true for {self.name}, which is built with random weights, expected it for "
                "module:function only. Set model.weights to a file with trained weights"
            )
        return self


class GatesSettings(Settings):
    """The gates."""

    exclude: list[str] = Field(default_factory=list, description="patterns of channel groups that get no gate")
    round_to: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] | None = Field(
        None,
        description="kept counts are multiples of this; auto measures which multiple is fastest for each group; by "
        "default auto for a budget of latency_ms, and 1 otherwise",
    )
    attention: Literal["finest", "heads"] = Field(
        "finest", description="units of attention: head dimensions if they outnumber the heads, or whole heads"
    )
    initial_keep_probability: Annotated[float, Field(gt=0.5, le=0.99)] = Field(
        0.99, description="probability of keeping each unit when the gate stage starts"
    )
    initial: Literal["magnitude", "constant"] = Field(
        "magnitude",
        description="magnitude: units with larger weights start with higher logits; otherwise all start equal",
    )
    initial_spread: Annotated[float, Field(ge=0.0, le=10.0)] = Field(
        1.0, description="change of the initial logit per standard deviation of the magnitudes"
    )
    learning_rate: Rate | None = Field(
        None, description="Adam's learning rate of the logits; by default 30 / steps in which gates are not frozen"
    )


Metric = Literal["macs", "params", "latency_ms", "memory_mb"]


def _falling(fractions: list[float]) -> list[float]:
    if any(later >= earlier for earlier, later in pairwise(fractions)):
        raise ValueError(f"found {fractions}, expected a decreasing list")
    return fractions


class BudgetSettings(Settings):
    """How much of the dense cost may remain."""

    key_alone = "fraction"

    metric: Metric = Field("macs", description="what is counted")
    fraction: Annotated[
        Annotated[Fraction, Tag("(one)")]
        | Annotated[list[Fraction], Field(min_length=1), AfterValidator(_falling), Tag("(several)")],
        Discriminator(lambda value: "(several)" if isinstance(value, list) else "(one)"),
    ] = Field(0.5, description="share of the dense cost that may remain; a decreasing list gives nested models")
    limit: Annotated[int | float, Field(gt=0)] | None = Field(
        None,
        description="absolute instead of fraction: MACs per sample, parameters, milliseconds or megabytes that remain",
    )

    also: dict[Metric, Fraction] = Field(
        default_factory=dict, description="further metrics with the share that may remain; every model meets them too"
    )

    @model_validator(mode="after")
    def _of_one_kind(self) -> BudgetSettings:
        if self.limit is not None and "fraction" in self.model_fields_set:
            raise ValueError(
                f"found a limit of {self.limit:,} and a fraction of {self.fraction}, expected only one of them"
            )
        return self

    @model_validator(mode="after")
    def _of_whole_counts(self) -> BudgetSettings:
        if self.limit is not None and self.metric in COUNTS and self.limit != int(self.limit):
            raise ValueError(f"found a limit of {self.limit} {self.metric}, expected a whole number")
        return self

    @property
    def is_timed(self) -> bool:
        """Whether milliseconds are limited."""
        return "latency_ms" in (self.metric, *self.also)

    @model_validator(mode="after")
    def _of_other_metrics(self) -> BudgetSettings:
        if self.metric in self.also:
            raise ValueError(f"found {self.metric} as the metric and again in also, expected another metric there")
        return self

    @property
    def fractions(self) -> tuple[float, ...]:
        """The fractions, from the largest model to the smallest."""
        return tuple(self.fraction) if isinstance(self.fraction, list) else (self.fraction,)

    def of_dense(self, dense_cost: float) -> BudgetSettings:
        """The same budget with its limit expressed as a fraction of the dense cost."""
        if self.limit is None:
            return self
        half = 0.5 if self.metric in COUNTS else 0.0  # so that rounding down gives the limit itself
        fraction = min(1.0, (self.limit + half) / dense_cost)
        return self.model_copy(update={"fraction": fraction, "limit": None})

    def shares(self, fraction: float) -> dict[Metric, float]:
        """By metric, the share that may remain for the model of this fraction."""
        return {self.metric: fraction, **self.also}


class TauSettings(Settings):
    """Relaxation temperature during the gate stage."""

    start: Annotated[float, Field(gt=0.0, le=100.0)] = Field(2.0, description="tau at the first step")
    end: Annotated[float, Field(gt=0.0, le=100.0)] = Field(0.1, description="tau when gates are frozen, at most start")
    schedule: Literal["exponential", "linear", "constant"] = Field(
        "exponential", description="how tau is annealed from start to end; constant keeps it at start"
    )

    @model_validator(mode="after")
    def _annealed(self) -> TauSettings:
        if self.end > self.start:
            raise ValueError(f"found end {self.end} above start {self.start}, expected tau to decrease")
        return self


class OptimizerSettings(Settings):
    """The weights' optimiser."""

    name: str = Field("sgd", description="name of any of timm's optimisers")
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.9, description="momentum, for optimisers that use it")
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        5e-4, description="weight decay of the weights; not applied to biases, norms and logits"
    )
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="share of the target spread over all classes"
    )


class SchedulerSettings(Settings):
    """Learning-rate schedule of the weights in a stage."""

    name: Literal["cosine", "tanh", "step", "multistep", "poly"] = Field(
        "cosine", description="timm's name of the schedule"
    )
    decay_epochs: list[Annotated[int, Field(ge=1)]] = Field(
        default_factory=list, description="step: epochs between decays, one number; multistep: epochs of the decays"
    )
    decay_rate: Fraction = Field(0.1, description="step, multistep: factor of the learning rate at each decay")

    @model_validator(mode="after")
    def _has_epochs(self) -> SchedulerSettings:
        expected = {"step": len(self.decay_epochs) == 1, "multistep": len(self.decay_epochs) >= 1}
        if not expected.get(self.name, not self.decay_epochs):
            raise ValueError(
                f"found decay_epochs {self.decay_epochs} for {self.name}, expected one number for step, one or more "
                "for multistep, and none for the others"
            )
        return self


class TrainingSettings(Settings):
    """How training steps are computed, in all stages."""

    precision: Literal["no", "bf16", "fp16"] = Field(
        "no", description="precision of forward passes; no: float32; fp16, with a scaled loss, on CUDA only"
    )
    accumulation_steps: Annotated[int, Field(ge=1, le=4096)] = Field(
        1, description="number of parts that a batch is split into, to save memory"
    )
    clip_norm: Annotated[float, Field(gt=0.0)] | None = Field(None, description="largest norm of the weights' gradient")
    average_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        None, description="exponential moving average of the weights in the dense and finetune stages"
    )
    loss: str | None = Field(
        None, description="module:function of your own, (scores, labels) -> loss; by default cross entropy"
    )
    metric: str | None = Field(
        None,
        description="module:function of your own, (outputs, labels) -> number, whose mean over the test samples is "
        "reported instead of accuracy",
    )


class GuardSettings(Settings):
    """Problems that a run tolerates."""

    nonfinite_batches: Annotated[int, Field(ge=0)] = Field(
        0, description="most batches per stage that are skipped because their loss is not finite"
    )


class CheckpointSettings(Settings):
    """Saved states to resume the run from; one is always written at the end of each stage."""

    every_steps: Annotated[int, Field(ge=1)] | None = Field(None, description="steps between two")
    every_minutes: Annotated[float, Field(gt=0.0)] | None = Field(10.0, description="minutes between two")
    keep: Annotated[int, Field(ge=1)] = Field(2, description="number of latest states that are kept")


class RecoverySettings(Settings):
    """Recovery after hardening without training: see `prunegate.training.recover`."""

    refit: Literal["auto", "always", "never"] = Field(
        "auto",
        description="refit layers to their outputs in the dense model, if that lowers the training loss; auto skips "
        "models with BatchNorm, whose weights finetune better without it",
    )
    samples: Annotated[int, Field(ge=2, le=1_000_000)] = Field(
        1024,
        description="training samples to refit on; fewer for large inputs, limited to 64 million numbers in all",
    )


class DistillationSettings(Settings):
    """Learning from the dense model's outputs in the gate and finetune stages."""

    weight: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.0, description="share of the distillation term in the loss; 0 turns distillation off"
    )
    temperature: Annotated[float, Field(gt=0.0, le=100.0)] = Field(
        4.0, description="class scores are divided by this before they are compared"
    )


class StageSettings(Settings):
    """Ordinary training."""

    epochs: Epochs = Field(description="passes over the training images; 0 skips the stage")
    learning_rate: Rate = Field(description="peak learning rate of the weights")
    warmup_epochs: Annotated[float, Field(ge=0.0)] = Field(0.0, description="epochs over which the rate rises")


class GateStageSettings(StageSettings):
    """Training of weights and gates together."""

    epochs: Annotated[int, Field(ge=1, le=100_000)] = Field(description="passes over the training images")
    target_ramp: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.5, description="fraction of the stage over which the target is lowered from the dense cost"
    )
    frozen: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.4,
        description="fraction of the stage, at its end, in which gates are frozen: masks that meet the budget are "
        "fixed, and weights keep training under them",
    )
    final_learning_rate_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.05, description="learning rate of the weights at the end of this stage, as a fraction of the peak rate"
    )

    @model_validator(mode="after")
    def _reaches_its_target(self) -> GateStageSettings:
        if self.target_ramp + self.frozen > 1 + 1e-9:
            raise ValueError(
                f"found target_ramp {self.target_ramp} and frozen {self.frozen}, expected a sum of at most 1: the "
                "target is lowered before the gates are frozen"
            )
        return self


class StagesSettings(Settings):
    """The stages of a run, in order."""

    dense: StageSettings = Field(
        StageSettings(epochs=0, learning_rate=0.1),
        description="trains the dense model; left out, or 0 epochs, if it comes with weights",
    )
    gate: GateStageSettings = Field(description="trains weights and gates together under the budget")
    finetune: StageSettings = Field(description="trains the compact model")


class OutputSettings(Settings):
    """Where the run writes."""

    folder: str | None = Field(None, description="runs/<name> if not given")


class Recipe(Settings):
    """One run: a model, data, a budget, and the stages that lead to a compact checkpoint."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=100)] = Field(
        description="letters, digits, dots, dashes and underscores; names the output folder"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="random seed of weights, batches and noise")
    model: ModelSettings = Field(description="the dense model")
    data: DataSettings = Field(description="images and labels")
    gates: GatesSettings = Field(GatesSettings(), description="the gates")
    budget: BudgetSettings = Field(
        BudgetSettings(), description="how much of the dense cost may remain; a number alone is the fraction"
    )
    latency: LatencySettings = Field(
        LatencySettings(), description="how latency is measured, for a budget of latency_ms and for round_to: auto"
    )
    tau: TauSettings = Field(TauSettings(), description="relaxation temperature")
    optimizer: OptimizerSettings = Field(OptimizerSettings(), description="the weights' optimiser")
    scheduler: SchedulerSettings = Field(
        SchedulerSettings(), description="learning-rate schedule of the weights in a stage"
    )
    training: TrainingSettings = Field(TrainingSettings(), description="how training steps are computed")
    guards: GuardSettings = Field(GuardSettings(), description="problems that a run tolerates")
    checkpoints: CheckpointSettings = Field(CheckpointSettings(), description="states to resume from")
    trackers: list[Literal["csv", "tensorboard"]] = Field(
        default_factory=list, description="further outputs for the metrics, besides metrics.jsonl"
    )
    recovery: RecoverySettings = Field(RecoverySettings(), description="recovery after hardening, before compaction")
    distillation: DistillationSettings = Field(DistillationSettings(), description="learning from the dense model")
    stages: StagesSettings = Field(description="dense, gate, finetune")
    output: OutputSettings = Field(OutputSettings(), description="where the run writes")

    @property
    def folder(self) -> Path:
        """Where the run writes by default."""
        return Path(self.output.folder or f"runs/{self.name}")

    @property
    def round_to(self) -> int | Literal["auto"]:
        """What kept counts are multiples of."""
        return self.gates.round_to or ("auto" if self.budget.is_timed else 1)

    @property
    def needs_latency(self) -> bool:
        """Whether the run measures the latency of operations before it trains."""
        return self.budget.is_timed or self.round_to == "auto"

    def dump_yaml(self) -> str:
        """The whole recipe with every default written out."""
        written = self.model_dump()
        del written["budget"]["limit" if self.budget.limit is None else "fraction"]  # exactly one is set
        return yaml.safe_dump(written, sort_keys=False, allow_unicode=True)
