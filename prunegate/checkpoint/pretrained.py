"""transformers' ``save_pretrained`` of a compact model: it refuses, as its folder could not be read back.

``from_pretrained`` builds a model from its configuration, which has one number for the width of all layers. The layers
of a compact model have different widths.
"""

from __future__ import annotations

import warnings
import weakref
from typing import Any

from torch import nn

from prunegate.errors import CheckpointError, PrunegateWarning

NAME = "save_pretrained"
_CANNOT = (
    "transformers' configuration has one width for all layers and cannot describe the unequal widths of a compact "
    "model, so from_pretrained could not read the folder."
)
# Arguments with which trainers call it: they load the weights back into the existing model.
_OF_TRAINERS = ("state_dict", "is_main_process")


class RefusingToSave:
    """Replaces the ``save_pretrained`` of one compact model.

    Trainers call it with a state dict or ``is_main_process`` to save checkpoints for resuming; these are written, with
    a warning.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        model = self._model()
        if model is not None and any(name in kwargs for name in _OF_TRAINERS):
            warnings.warn(
                f"{NAME}: this checkpoint can only resume training with the same compact model. {_CANNOT} For a file "
                "to load, call save of what prunegate.compact returned, and prunegate.load.",
                PrunegateWarning,
                stacklevel=2,
            )
            return getattr(type(model), NAME)(model, *args, **kwargs)
        raise CheckpointError(
            f"{NAME}: {'the model' if model is None else type(model).__name__} is a compact model, expected a dense "
            f"one. {_CANNOT} Nothing was written. Save it with result.save('small.safetensors'), where result is what "
            "prunegate.compact returned, and load it with prunegate.load('small.safetensors', model=dense), where "
            "dense is a model of the dense configuration."
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> RefusingToSave:
        """The replacement for the copied model."""
        model = self._model()
        return self if model is None else RefusingToSave(memo.get(id(model), model))

    def __reduce__(self) -> tuple[Any, ...]:
        return RefusingToSave, (self._model(),)


def refuse_save_pretrained(model: nn.Module) -> None:
    """Make the ``save_pretrained`` of a compact model refuse, if its class has one."""
    if callable(getattr(type(model), NAME, None)):
        vars(model)[NAME] = RefusingToSave(model)
