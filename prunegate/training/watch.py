"""Notices, while a loop of the user's own runs, what would train nothing without a word."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from prunegate.errors import PrunegateWarning
from prunegate.wrapping import GatedModel

# Steps after which weights have to have moved, and passes after which each channel group has to have had a gradient.
_STEPS_TO_MOVE = 5
_PASSES_TO_REACH = 50
# Entries of each weight that are compared; an optimiser moves all.
_COMPARED = 64


class TrainingWatch:
    """Looks at a gated model once in each step of its optimisers, and warns once of each mistake that it finds.

    Weights that have gradients and never move: their optimiser holds other tensors, mostly those of the model that
    was wrapped. Channel groups to whose gates the loss sends no gradient, while it sends one to their weights.

    A look compares the counts that torch keeps of writes to each tensor. The device is waited for once or twice a run.
    """

    def __init__(self) -> None:
        self._looks = 0
        self._versions: dict[str, int] = {}
        self._values: dict[str, torch.Tensor] = {}
        self._waits_for_weights = self._waits_for_gates = True

    def look(self, gated: GatedModel) -> None:
        """Call it once in each step, when there are gradients."""
        if not self._looks:
            self._begin(gated)
        self._looks += 1
        if self._waits_for_weights:
            self._look_at_weights(gated)
        if self._waits_for_gates and (gated.gates.passes or 0) >= _PASSES_TO_REACH:
            self._look_at_gates(gated)

    def _begin(self, gated: GatedModel) -> None:
        weights = dict(gated.model.named_parameters())
        self._versions = {name: weight._version for name, weight in weights.items()}
        self._values = {name: _some_of(weight) for name, weight in weights.items()}
        gated.gates.watch_gradients()

    def _look_at_weights(self, gated: GatedModel) -> None:
        weights = dict(gated.model.named_parameters())
        if any(weight._version != self._versions.get(name) for name, weight in weights.items()):
            self._weights_have_moved()
            return
        if self._looks <= _STEPS_TO_MOVE:
            return
        if any(not torch.equal(_some_of(weight), self._values[name]) for name, weight in weights.items()):
            self._weights_have_moved()  # by ways that torch keeps no count of
            return
        gradients = [w.grad for w in weights.values() if w.requires_grad and w.grad is not None]
        # A scaled loss overflows in the first steps, which are then left out.
        if not gradients or not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            return
        self._weights_have_moved()
        warnings.warn(
            f"the gated model: no weight has moved in {self._looks - 1} steps, although they have gradients. wrap "
            "works on a copy, so an optimiser that was made before wrap holds the weights of the first model. Make the "
            "optimiser from gated.parameters() or gated.weight_parameters(). If only the gates are to be trained, say "
            "gated.model.requires_grad_(False).",
            PrunegateWarning,
            stacklevel=4,
        )

    def _weights_have_moved(self) -> None:
        self._waits_for_weights = False
        self._values = {}

    def _look_at_gates(self, gated: GatedModel) -> None:
        self._waits_for_gates = False
        unreached = gated.gates.end_watch()
        weights = dict(gated.model.named_parameters())
        silent = [
            group.name
            for group in gated.groups
            if group.name in unreached
            and any(self._learns(member.tensor, weights) for member in group.members if member.tensor in weights)
        ]
        if silent:
            shown = ", ".join(silent[:5]) + (f" and {len(silent) - 5} more" if len(silent) > 5 else "")
            warnings.warn(
                f"gates: {shown}: found no gradient from the loss in {_PASSES_TO_REACH} steps, although the weights of "
                "these channel groups have one. Their gates would follow the budget alone. Code that computes a part "
                "of the model again in its backward pass, other than torch.utils.checkpoint, does not meet their "
                "masks. Use torch.utils.checkpoint there, or leave the groups out with wrap(..., exclude=[...]).",
                PrunegateWarning,
                stacklevel=4,
            )

    def _learns(self, name: str, weights: dict[str, nn.Parameter]) -> bool:
        gradient = weights[name].grad
        if gradient is not None:
            return bool(gradient.any())
        return weights[name]._version != self._versions.get(name)


def _some_of(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().flatten()[:_COMPARED].clone()
