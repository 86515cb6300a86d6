"""How a stage trains, as data."""

from __future__ import annotations

from dataclasses import dataclass

from prunegate.training.budget import Budget
from prunegate.training.tau import TauSchedule


@dataclass(frozen=True)
class TrainingPlan:
    """How the weights are trained in one stage.

    Attributes:
        learning_rate: Peak learning rate of the weights; the scheduler lowers it from there.
        optimizer: Any name that timm's `create_optimizer_v2` knows.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        warmup_epochs: Epochs over which the rate rises from zero.
        final_learning_rate_fraction: Rate at the end of the stage, as a fraction of the peak rate, in [0, 1].
        scheduler: ``"cosine"``, ``"tanh"``, ``"step"``, ``"multistep"`` or ``"poly"``, from timm's
            `create_scheduler_v2`.
        decay_epochs: Epochs between the steps of ``"step"``, or those of ``"multistep"``.
        decay_rate: Factor of the rate at each of them.
        accumulation_steps: Number of parts that a batch is split into; their gradients are accumulated for one step.
        clip_norm: Largest norm of the weights' gradient; larger gradients are clipped to it.
        average_decay: Decay per step of an exponential moving average of the weights, which replaces them at the end of
            the stage; None for none. Gate stages have none, as their weights adapt to the changing masks.
        nonfinite_batches: Number of batches with a non-finite loss that are skipped before training stops.
    """

    stage: str
    epochs: int
    learning_rate: float
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    warmup_epochs: float = 0.0
    final_learning_rate_fraction: float = 0.0
    scheduler: str = "cosine"
    decay_epochs: tuple[int, ...] = ()
    decay_rate: float = 0.1
    accumulation_steps: int = 1
    clip_norm: float | None = None
    average_decay: float | None = None
    nonfinite_batches: int = 0


@dataclass(frozen=True)
class GateTraining:
    """What the gate stage adds: a budget, an annealed tau, and the logits' own optimiser (Adam, no decay).

    Attributes:
        freeze_after: Steps after which the gates are frozen: masks that meet the budgets are fixed, and the rest of the
            stage trains the weights under them. None for never.
        others: Further budgets, of other metrics, that apply at the same time. Records show the first budget.
    """

    budget: Budget
    tau: TauSchedule
    learning_rate: float
    others: tuple[Budget, ...] = ()
    freeze_after: int | None = None

    @property
    def budgets(self) -> tuple[Budget, ...]:
        return (self.budget, *self.others)
