"""A callback for the Hugging Face `Trainer` whose model is a gated model."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch

from prunegate.errors import LoopError
from prunegate.integrations.packages import require
from prunegate.integrations.trainer_model import answer_trainer
from prunegate.training import Budget, GateSteps
from prunegate.wrapping import GatedModel

require("transformers", "transformers")
require("accelerate", "transformers")

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments  # noqa: E402
from transformers.trainer_callback import ExportableState  # noqa: E402


class PruningCallback(TrainerCallback, ExportableState):
    """Trains the gates along with ``trainer.train``, and hardens them to the budget at its end.

    Create it before the Trainer, which gets the same gated model. The gated model then exposes its inner model's
    signature and configuration to the Trainer, and its state dict can be written as safetensors. The Trainer's
    optimiser may hold the logits; it never sees their gradient. Expected cost, tau and multiplier are logged with the
    losses as ``prunegate_...``. Checkpoints can be resumed with ``resume_from_checkpoint``.

    The Trainer clips gradients before callbacks run, so the logits' gradient from the loss counts in its norm.

    Args:
        gated: The Trainer's model.
        budget: A `Budget`, or a fraction of the dense MACs.
        steps: Length of the gate stage in optimiser steps; by default the whole training.
        frozen: Share of these steps, at the end, in which the gates are frozen, in [0, 1).
        tau_start: Tau at the first step, > 0.
        tau_end: Tau at the last step before the gates are frozen, in (0, tau_start].
        learning_rate: Learning rate of the logits; by default 30 / (steps before the gates are frozen).

    Raises:
        LoopError: The model is not gated; or the Trainer has another model, or settings that do not allow training
            gates.
    """

    def __init__(
        self,
        gated: GatedModel,
        budget: Budget | float = 0.5,
        *,
        steps: int | None = None,
        frozen: float = 0.4,
        tau_start: float = 2.0,
        tau_end: float = 0.1,
        learning_rate: float | None = None,
    ) -> None:
        if not isinstance(gated, GatedModel):
            raise LoopError(
                f"PruningCallback: found a {type(gated).__name__}, expected a gated model. Only that has gates to "
                "train. Pass prunegate.wrap(model, example_inputs) to the callback and to the Trainer."
            )
        answer_trainer(gated)
        self.gated, self.budget, self.steps, self.learning_rate = gated, budget, steps, learning_rate
        self.frozen, self.tau_start, self.tau_end = frozen, tau_start, tau_end
        self.gates: GateSteps | None = None
        self._in_trainer = False

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._in_trainer = True
        if kwargs["model"] is not self.gated:
            raise LoopError(
                f"PruningCallback: found a Trainer of another model, a {type(kwargs['model']).__name__}, expected "
                "the callback's own. Gates would be trained by another model's loss. Pass both the same gated model."
            )
        if args.restore_callback_states_from_checkpoint:
            raise LoopError(
                "PruningCallback: found restore_callback_states_from_checkpoint=True, expected False. The Trainer "
                "would replace this callback by one without a model. Turn it off: this callback restores itself."
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._in_trainer:
            raise LoopError(
                "PruningCallback: it was added to an existing Trainer, expected it among the Trainer's "
                "callbacks=[...]. The Trainer looks for the model's labels when it is created."
            )
        if getattr(kwargs.get("optimizer"), "scaler", None) is not None:
            raise LoopError(
                "PruningCallback: found fp16=True, which scales the loss, expected bf16 or full precision. The penalty "
                "would be added to scaled gradients. Use bf16=True."
            )
        # The Trainer stores states by class name; that of a new training is empty.
        states: Any = state.stateful_callbacks
        saved = states.get(type(self).__name__, self.state())["attributes"]["gates"]
        self.gates = GateSteps(
            self.gated,
            self.budget,
            steps=self.steps or state.max_steps,
            frozen=self.frozen,
            tau_start=self.tau_start,
            tau_end=self.tau_end,
            learning_rate=self.learning_rate,
            fresh=not saved,
        )
        if saved:
            self.gates.load_state_dict(_unpack(saved))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.gates is not None:
            self.gates.step()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs.get("logs") or {}
        if self.gates is not None and "loss" in logs:
            results = {f"prunegate_{name}": value for name, value in self.gates.metrics().items()}
            logs.update(results)  # for later callbacks
            state.log_history[-1].update(results)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.gates is not None:
            self.gates.finish()
            self.gates = None

    def state(self) -> dict[str, Any]:
        """The state that the Trainer writes to ``trainer_state.json``."""
        return {"args": {}, "attributes": {"gates": "" if self.gates is None else _pack(self.gates.state_dict())}}


def _pack(state: dict[str, Any]) -> str:
    """The state as text for JSON, with exact tensors."""
    file = io.BytesIO()
    torch.save(state, file)
    return base64.b64encode(file.getvalue()).decode()


def _unpack(text: str) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(io.BytesIO(base64.b64decode(text)), map_location="cpu", weights_only=True)
    return state
