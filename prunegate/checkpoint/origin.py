"""Where a compact model comes from: kept with it, so that it can be pruned and saved again."""

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
    """The dense model and what was done to it.

    Attributes:
        steps: The compactions, first to last.
        class_name: Qualified name of the dense model's class.
        builder: How the dense model is built, if that is known.
        skeleton: The dense model without data, to find the builder by; None if nothing is to be found.
        dense_costs: MACs per sample and parameters of the dense model.
    """

    steps: tuple[Step, ...]
    class_name: str
    builder: Builder | None = None
    skeleton: nn.Module | None = None
    dense_costs: Mapping[str, int] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> Origin:
        """Itself: what was done does not change."""
        return self


def origin_of(model: nn.Module) -> Origin | None:
    """Where a model comes from that `prunegate.load` or `prunegate.compact` made; None for any other."""
    # A copied `GraphModule` keeps of its attributes nothing but this one.
    result = model.meta.get(_ATTRIBUTE) if isinstance(model, fx.GraphModule) else vars(model).get(_ATTRIBUTE)
    return result if isinstance(result, Origin) else None


def set_origin(model: nn.Module, origin: Origin) -> None:
    """Note where a compact model comes from; transformers' ``save_pretrained`` of it refuses from here on."""
    refuse_save_pretrained(model)
    if isinstance(model, fx.GraphModule):
        model.meta[_ATTRIBUTE] = origin
    else:
        vars(model)[_ATTRIBUTE] = origin
