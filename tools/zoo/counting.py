"""Which outputs of a model count, told by their names alone: results do, what the model kept on the way does not.

The rule knows no models. An output does not count if its name says that it is a hidden state, a cache or intermediate,
or if it lies in the whole output of a model inside (``vision_model_output.pooler_output``); unless nothing is left.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from prunegate.compaction.equivalence import put_aside
from prunegate.groups import ExampleInputs
from prunegate.groups.following.outputs import named_tensors, names_of_state

_INNER = ("hidden_state", "past_key_values", "cache", "intermediate")
_OF_MODELS = ("_output", "_outputs")


def counts(place: str) -> bool:
    """Whether an output counts by its place, such as ``['encoder_last_hidden_state'][0]``."""
    names = re.findall(r"\w+", place)
    inside = pairwise(names)  # an element of a list has a number for a name
    return not any(part in name for name in names for part in _INNER) and not any(
        name.endswith(_OF_MODELS) and not part.isdigit() for name, part in inside
    )


def places_that_count(model: nn.Module, inputs: Any) -> list[str] | None:
    """The places of a model's outputs that count; None if all do, or none would."""
    inputs = ExampleInputs.of(inputs)
    with put_aside(model), torch.no_grad():
        returned = model.eval()(*inputs.args, **inputs.kwargs)
    places = [place for place, _ in named_tensors(returned, names_of_state(model))]
    counted = [place for place in places if counts(place)]
    return counted if 0 < len(counted) < len(places) else None
