"""A Lightning callback that trains the gates of the gated model in any LightningModule."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from prunegate.errors import LoopError
from prunegate.integrations.packages import require
from prunegate.training import Budget, GateSteps
from prunegate.wrapping import GatedModel

require("lightning.pytorch", "lightning")

import lightning.pytorch as pl  # noqa: E402 -- after the check that says how to get it


class PruningCallback(pl.Callback):
    """Trains the gates along with ``trainer.fit``, and hardens them to the budget at its end.

    The module contains one `GatedModel`, anywhere; its training_step and optimisers do not change. The gates step with
    the first optimiser that holds weights of the gated model, so only once per accumulated step. Expected cost, tau and
    multiplier are logged as ``prunegate/...``. Training can be resumed from any checkpoint; hardening happens after the
    last checkpoint of an epoch.

    Args:
        budget: A `Budget`, or a fraction of the dense MACs.
        steps: Length of the gate stage in steps of that optimiser; by default the whole fit.
        frozen: Share of these steps, at the end, in which the gates are frozen, in [0, 1).
        tau_start: Tau at the first step, > 0.
        tau_end: Tau at the last step before the gates are frozen, in (0, tau_start].
        learning_rate: Learning rate of the logits; by default 30 / (steps before the gates are frozen).

    Raises:
        LoopError: In ``fit``: no gated model or several, or a trainer in which gates cannot be trained.
    """

    def __init__(
        self,
        budget: Budget | float = 0.5,
        *,
        steps: int | None = None,
        frozen: float = 0.4,
        tau_start: float = 2.0,
        tau_end: float = 0.1,
        learning_rate: float | None = None,
    ) -> None:
        self.budget, self.steps, self.learning_rate = budget, steps, learning_rate
        self.frozen, self.tau_start, self.tau_end = frozen, tau_start, tau_end
        self.gates: GateSteps | None = None
        self._saved: dict[str, Any] | None = None
        self._optimizer: Optimizer | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise LoopError(
                f"PruningCallback: found precision {trainer.precision!r}, which scales the loss, expected one that "
                "does not. The penalty would be added to scaled gradients. Use precision='bf16-mixed' or "
                "'32-true'."
            )
        gated = gated_model_of(pl_module)
        self._optimizer = _optimizer_of(gated, trainer.optimizers)
        self.gates = GateSteps(
            gated,
            self.budget,
            steps=self.steps or _steps_of(trainer),
            frozen=self.frozen,
            tau_start=self.tau_start,
            tau_end=self.tau_end,
            learning_rate=self.learning_rate,
            fresh=self._saved is None,
        )
        if self._saved is not None:
            self.gates.load_state_dict(self._saved)
            self._saved = None

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        if self.gates is None or optimizer is not self._optimizer:
            return
        if all(parameter.grad is None for parameter in self.gates.gated.parameters()):
            return  # training_step returned None, which skips the batch in Lightning
        self.gates.step()
        pl_module.log_dict({f"prunegate/{name}": value for name, value in self.gates.metrics().items()})

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.gates is not None:
            self.gates.finish()

    def state_dict(self) -> dict[str, Any]:
        return {} if self.gates is None else self.gates.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Checkpoints are read before the model is on its device and the optimisers exist.
        self._saved = state_dict or None


def gated_model_of(module: nn.Module) -> GatedModel:
    """The gated model in a module.

    Raises:
        LoopError: There is none, or more than one.
    """
    results = {name: part for name, part in module.named_modules() if isinstance(part, GatedModel)}
    if len(results) != 1:
        which = f" ({', '.join(results)})" if results else ""
        raise LoopError(
            f"PruningCallback: found {len(results) or 'no'} gated models in {type(module).__name__}{which}, expected "
            "one. A budget applies to one gated model. "
            + (
                "Wrap one module that contains all layers to prune."
                if results
                else "Set its model to prunegate.wrap(model, example_inputs)."
            )
        )
    return next(iter(results.values()))


def _optimizer_of(gated: GatedModel, optimizers: list[Optimizer]) -> Optimizer:
    weights = {id(parameter) for parameter in gated.weight_parameters()}
    for optimizer in optimizers:
        if any(id(parameter) in weights for group in optimizer.param_groups for parameter in group["params"]):
            return optimizer
    raise LoopError(
        f"PruningCallback: found {len(optimizers)} optimisers without any weight of the gated model, expected one with "
        "them. The gates step when it steps. Pass gated.weight_parameters() to one in configure_optimizers."
    )


def _steps_of(trainer: pl.Trainer) -> int:
    steps = trainer.estimated_stepping_batches
    if not 0 < steps < float("inf"):
        raise LoopError(
            f"PruningCallback: found a fit of {steps} steps, expected a known length. Tau and the target follow "
            "it. Set max_steps or max_epochs of the trainer, or pass steps=... to the callback."
        )
    return int(steps)
