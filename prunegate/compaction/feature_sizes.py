"""Sizes that a model tells of its features, by the convention of timm: for who builds on them, not for its forward.

timm's models say by ``num_features`` how many channels ``forward_features`` gives, and by ``head_hidden_size`` how
many their classifier reads; ``reset_classifier`` and users' own heads go by these.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from prunegate.groups import ExampleInputs, copy_with, in_place_of

logger = logging.getLogger(__name__)

_OF_FEATURES = ("num_features", "embed_dim")
_OF_HEAD = ("head_hidden_size",)


def feature_edits(dense: nn.Module, compact: nn.Module, inputs: ExampleInputs) -> dict[str, int]:
    """The new values of those attributes of the compact model that no longer say what its features are.

    Both models are run on the meta device; nothing is computed.

    Args:
        dense: The dense model, with its tensors on the meta device.
    """
    told = [name for name in (*_OF_FEATURES, *_OF_HEAD) if type(vars(compact).get(name)) is int]
    if not told or not all(callable(getattr(compact, name, None)) for name in ("forward_features", "forward_head")):
        return {}
    try:
        before, after = (_sizes(model, inputs) for model in (dense, copy_with(compact, _on_meta)))
    except Exception as reason:  # a foreign forward may raise anything, and this is a courtesy
        logger.info("sizes of the features could not be found: %s", reason)
        return {}
    edits: dict[str, int] = {}
    for names, old, new in zip((_OF_FEATURES, _OF_HEAD), before, after, strict=True):
        changed = _changed(old, new)
        edits |= {
            name: changed[vars(compact)[name]] for name in names if name in told and vars(compact)[name] in changed
        }
    return edits


def _sizes(model: nn.Module, inputs: ExampleInputs) -> tuple[torch.Size, torch.Size]:
    """Shapes of the features, and of what the classifier reads."""
    given = inputs.map(lambda tensor: tensor.to("meta"))
    running: Any = model.eval()
    with torch.no_grad():
        features = running.forward_features(*given.args, **given.kwargs)
        return features.shape, running.forward_head(features, pre_logits=True).shape


def _changed(old: torch.Size, new: torch.Size) -> Mapping[int, int]:
    """The size that differs, if one does: features have one dimension of channels."""
    apart = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
    return dict(apart) if len(apart) == 1 else {}


def _on_meta(tensor: torch.Tensor) -> torch.Tensor:
    return in_place_of(tensor, tensor.detach().to("meta"))
