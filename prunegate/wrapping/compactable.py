"""Checks of a gated model before anything is removed from it."""

from __future__ import annotations

from prunegate.errors import CompactionError, MaskError
from prunegate.wrapping.gated_model import GatedModel


def refuse_uncompactable(gated: GatedModel) -> None:
    """Refuse a gated model that cannot be compacted in its current state.

    Raises:
        MaskError: Masks are not fixed, but drawn from the logits.
        CompactionError: Weights are NaN, or on the meta device.
    """
    _refuse_without_weights(gated)
    _refuse_drawn(gated)
    _refuse_nan(gated)


def _refuse_without_weights(gated: GatedModel) -> None:
    tensors = (*gated.model.named_parameters(), *gated.model.named_buffers())
    empty = next((name for name, tensor in tensors if tensor.is_meta), None)
    if empty is not None or any(tensor.is_meta for tensor in gated.example_inputs.tensors()):
        raise CompactionError(
            f"{empty or 'example_inputs'}: found a tensor on the meta device, expected one with data. Compaction "
            "compares outputs to certify the compact model, and cannot compute them here. Build the model with its "
            "weights, and wrap it with example inputs that have values."
        )


def _refuse_drawn(gated: GatedModel) -> None:
    if not gated.gates.are_fixed:
        share = gated.realised_cost() / max(1, gated.dense_cost())
        raise MaskError(
            "compact: found masks that are drawn from the logits, expected fixed ones. The current logits would leave "
            f"{share:.3f} of the MACs, regardless of the budget. Call gated.harden(budget) or GateSteps.finish() "
            "first. To use the masks of the current logits, call gated.set_masks(gated.masks())."
        )


def _refuse_nan(gated: GatedModel) -> None:
    lost = gated.weights_with_nan()
    if lost:
        raise CompactionError(
            f"compact: found NaN in {', '.join(lost[:3])}{f' and {len(lost) - 3} more' if len(lost) > 3 else ''}, "
            "expected numbers. A model with such weights outputs NaN, and so would a smaller one. Go back to weights "
            "from before the loss became NaN, and look for NaN in the data or lower the learning rate."
        )
