"""A loss and a metric of the user's own, tried on one batch before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from prunegate.data import Data
from prunegate.errors import RecipeError
from prunegate.modes import eval_mode
from prunegate.numbers import is_number
from prunegate.recipe.schema import TrainingSettings


def check_functions(
    model: nn.Module,
    data: Data,
    training: TrainingSettings,
    loss: Callable[..., Any] | None,
    metric: Callable[..., Any] | None,
) -> None:
    """Call both functions on the model's outputs for the first test batch.

    Raises:
        RecipeError: A function raises an error, or does not return a loss or a number.
    """
    inputs, labels, *_ = next(iter(data.test_batches()))
    device = next(iter(model.parameters())).device
    with eval_mode(model):
        outputs = model(inputs.to(device))
    if loss is not None:
        result = _called("training.loss", training.loss, loss, outputs, labels)
        if not isinstance(result, torch.Tensor) or result.dim() or not result.requires_grad:
            raise RecipeError(
                f"training.loss: {training.loss}: returned {_shown(result)}, expected a 0-d tensor with a gradient, "
                "such as a mean over the batch."
            )
    if metric is not None:
        result = _called("training.metric", training.metric, metric, outputs, labels)
        value = result.item() if isinstance(result, torch.Tensor) and result.numel() == 1 else result
        if not is_number(value):
            raise RecipeError(
                f"training.metric: {training.metric}: returned {_shown(result)}, expected one finite number, the mean "
                "over the batch's samples."
            )


def _called(key: str, name: str | None, function: Callable[..., Any], outputs: Any, labels: Any) -> Any:
    try:
        return function(outputs, labels)
    except Exception as error:  # the user's function may raise anything
        raise RecipeError(
            f"{key}: {name}: raised {type(error).__name__}: {error}. It was called with (outputs, labels): "
            f"{_shown(outputs)} and {_shown(labels)}."
        ) from error


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        return "a dict of " + ", ".join(f"{key}: {_shown(part)}" for key, part in list(value.items())[:8])
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of " + ", ".join(map(_shown, value[:8]))
    return (
        f"a {type(value).__name__} ({value})" if isinstance(value, (int, float, str)) else f"a {type(value).__name__}"
    )
