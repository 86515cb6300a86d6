"""What a gated model has to be before anything of it is removed."""

from __future__ import annotations

from prunegate.errors import CompactionError, MaskError
from prunegate.wrapping.gated_model import GatedModel


def refuse_uncompactable(gated: GatedModel) -> None:
    """Refuse a gated model of which no compact one can be made as things are.

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
            f"{empty or 'example_inputs'}: found a tensor on the meta device, expected one with data. A compact model "
            "is handed out with a certificate of what it computes, and here nothing can be computed. Build the model "
            "with its weights, and wrap it with example inputs that have values."
        )


def _refuse_drawn(gated: GatedModel) -> None:
    if not gated.gates.are_fixed:
        share = gated.realised_cost() / max(1, gated.dense_cost())
        raise MaskError(
            "compact: found masks that are drawn from the logits, expected fixed ones. The logits as they stand would "
            f"leave {share:.3f} of the MACs, whatever the budget says. Call gated.harden(budget) or GateSteps.finish() "
            "first. To take the logits at their word, say gated.set_masks(gated.masks())."
        )


def _refuse_nan(gated: GatedModel) -> None:
    lost = gated.weights_with_nan()
    if lost:
        raise CompactionError(
            f"compact: found NaN in {', '.join(lost[:3])}{f' and {len(lost) - 3} more' if len(lost) > 3 else ''}, "
            "expected numbers. What training left computes nothing, and neither would a smaller model. Go back to "
            "weights from before the loss became NaN, and look for NaN in the data or lower the learning rate."
        )
