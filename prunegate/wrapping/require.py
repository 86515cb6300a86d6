"""Check that an argument is a gated model."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from prunegate.errors import NotGatedError
from prunegate.wrapping.gated_model import GatedModel


def gated_model(value: Any, where: str) -> GatedModel:
    """Return ``value`` if it is a gated model, or the gated model that `torch.compile` wraps.

    Args:
        where: The function it was passed to, for the message.

    Raises:
        NotGatedError: ``value`` is something else.
    """
    model = getattr(value, "_orig_mod", value)
    if isinstance(model, GatedModel):
        return model
    if inspect.isclass(value):
        result, advice = f"the class {value.__name__}", "Make an instance of it, and wrap that: gated = prunegate.wrap("
        raise NotGatedError(f"{where}: found {result}, expected a gated model. {advice}{value.__name__}(...), inputs).")
    inner = getattr(value, "module", None)
    if isinstance(inner, GatedModel):
        raise NotGatedError(
            f"{where}: found a {type(value).__name__} around a gated model, expected the gated model itself. Pass its "
            ".module."
        )
    remedy = "Make one first: gated = prunegate.wrap(model, example_inputs)."
    if not isinstance(value, nn.Module):
        remedy = "prunegate.wrap(model, example_inputs) makes one."
    if isinstance(getattr(value, "model", None), nn.Module) and hasattr(value, "certificate"):
        remedy = "It has been compacted already: its .model is an ordinary module."
    raise NotGatedError(f"{where}: found a {type(value).__name__}, expected a gated model. {remedy}")
