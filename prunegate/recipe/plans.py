"""How a recipe trains each stage."""

from __future__ import annotations

from prunegate.recipe.schema import GateStageSettings, Recipe, StageSettings
from prunegate.training import TrainingPlan


def plan_of(recipe: Recipe, stage: str) -> TrainingPlan:
    """The plan of ``"dense"``, ``"gate"`` or ``"finetune"``."""
    settings: StageSettings = getattr(recipe.stages, stage)
    optimizer, training, scheduler = recipe.optimizer, recipe.training, recipe.scheduler
    return TrainingPlan(
        stage,
        settings.epochs,
        settings.learning_rate,
        optimizer=optimizer.name,
        momentum=optimizer.momentum,
        weight_decay=optimizer.weight_decay,
        label_smoothing=optimizer.label_smoothing,
        warmup_epochs=settings.warmup_epochs,
        final_learning_rate_fraction=(
            settings.final_learning_rate_fraction if isinstance(settings, GateStageSettings) else 0.0
        ),
        scheduler=scheduler.name,
        decay_epochs=tuple(scheduler.decay_epochs),
        decay_rate=scheduler.decay_rate,
        accumulation_steps=training.accumulation_steps,
        clip_norm=training.clip_norm,
        average_decay=training.average_decay,
        nonfinite_batches=recipe.guards.nonfinite_batches,
    )


def copies_in_state(recipe: Recipe) -> int:
    """Number of further copies of the weights in a state: the optimiser's, and the moving average."""
    return (1 if recipe.optimizer.name.lower() in ("sgd", "momentum") else 2) + (
        recipe.training.average_decay is not None
    )
