"""How a stage trains, as data."""

from __future__ import annotations

from dataclasses import dataclass

from prunegate.training.budget import Budget
from prunegate.training.tau import TauSchedule


@dataclass(frozen=True)
class TrainingPlan:
    """How the weights are trained in one stage.

    Attributes:
        learning_rate: Peak rate of the weights; from there on it follows the scheduler.
        optimizer: Any name that timm's `create_optimizer_v2` knows.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        warmup_epochs: Epochs over which the rate rises from zero.
        final_learning_rate_fraction: What is left of the peak rate at the end of the stage, in [0, 1].
        scheduler: ``"cosine"``, ``"tanh"``, ``"step"``, ``"multistep"``, ``"poly"``, as timm's `create_scheduler_v2`
            has them.
        decay_epochs: Epochs between the steps of ``"step"``, or those of ``"multistep"``.
        decay_rate: What the rate is multiplied with at each of them.
        accumulation_steps: Parts that a batch is passed through the model in; their gradients add up to one step.
        clip_norm: Largest norm of the weights' gradient; longer ones are shortened to it.
        average_decay: Decay per step of an exponential moving average of the weights, which takes their place at the
            end of the stage; None for none. Stages with gates have none: their weights follow the structure.
        nonfinite_batches: Batches whose loss is not finite that are passed over before training stops.
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
        freeze_after: Steps after which the gates are frozen: masks that meet the budgets are fixed, and what is left
            of the stage trains the weights under them. None for never.
        others: Further budgets, of other metrics, that are held at the same time. Records tell of the first.
    """

    budget: Budget
    tau: TauSchedule
    learning_rate: float
    others: tuple[Budget, ...] = ()
    freeze_after: int | None = None

    @property
    def budgets(self) -> tuple[Budget, ...]:
        return (self.budget, *self.others)
