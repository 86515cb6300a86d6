"""Warns about mistakes in the user's training loop that would silently train nothing."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from prunegate.errors import PrunegateWarning
from prunegate.wrapping import GatedModel

# Steps within which weights have to change, and passes within which each channel group has to get a gradient.
_STEPS_TO_MOVE = 5
_PASSES_TO_REACH = 50
# Entries of each weight that are compared; an optimiser moves all.
_COMPARED = 64


class TrainingWatch:
    """Checks a gated model at each optimiser step, and warns once about each mistake that it finds.

    It finds weights that have gradients but never change, because their optimiser holds other tensors, mostly those of
    the model before `wrap`; and channel groups whose gates get no gradient from the loss although their weights do.

    A check compares torch's version counters of the tensors. It synchronises with the device once or twice per run.
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
            self._weights_have_moved()  # by writes that torch does not count
            return
        gradients = [w.grad for w in weights.values() if w.requires_grad and w.grad is not None]
        # A scaled loss overflows in the first steps, which are then skipped.
        if not gradients or not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            return
        self._weights_have_moved()
        warnings.warn(
            f"the gated model: no weight has changed in {self._looks - 1} steps, although they have gradients. wrap "
            "works on a copy, so an optimiser created before wrap holds the weights of the original model. Create the "
            "optimiser from gated.parameters() or gated.weight_parameters(). To train only the gates, call "
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
                f"gates: {shown}: no gradient from the loss in {_PASSES_TO_REACH} steps, although the weights of these "
                "channel groups have one. Their gates would follow the budget alone. Code that recomputes a part of "
                "the model in its backward pass, other than torch.utils.checkpoint, does not see their masks. Use "
                "torch.utils.checkpoint there, or exclude the groups with wrap(..., exclude=[...]).",
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
