"""The origin of a compact model, stored with it so that it can be pruned and saved again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from prunegate.builders import Builder
from prunegate.checkpoint.pretrained import refuse_save_pretrained
from prunegate.checkpoint.steps import Step

_ATTRIBUTE = "_prunegate_origin"


@dataclass(frozen=True)
class Origin:
    """The dense model and its compactions.

    Attributes:
        steps: The compactions, first to last.
        class_name: Qualified name of the dense model's class.
        builder: How the dense model is built, if known.
        skeleton: The dense model without data, to identify the builder; None if that is not needed.
        dense_costs: MACs per sample and parameters of the dense model.
    """

    steps: tuple[Step, ...]
    class_name: str
    builder: Builder | None = None
    skeleton: nn.Module | None = None
    dense_costs: Mapping[str, int] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> Origin:
        """Return the same object, as it is immutable."""
        return self


def origin_of(model: nn.Module) -> Origin | None:
    """The origin of a model from `prunegate.load` or `prunegate.compact`; None for any other."""
    # ``meta`` is the only attribute that a copied `GraphModule` keeps.
    result = model.meta.get(_ATTRIBUTE) if isinstance(model, fx.GraphModule) else vars(model).get(_ATTRIBUTE)
    return result if isinstance(result, Origin) else None


def set_origin(model: nn.Module, origin: Origin) -> None:
    """Store the origin of a compact model; its ``save_pretrained`` (transformers) then refuses to save."""
    refuse_save_pretrained(model)
    if isinstance(model, fx.GraphModule):
        model.meta[_ATTRIBUTE] = origin
    else:
        vars(model)[_ATTRIBUTE] = origin
