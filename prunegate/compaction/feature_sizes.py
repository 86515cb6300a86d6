"""Feature sizes that timm models expose for downstream users; their forward does not use them.

In timm models, ``num_features`` is the number of channels of ``forward_features``, and ``head_hidden_size`` the number
that the classifier reads; ``reset_classifier`` and users' own heads rely on them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from prunegate.groups import ExampleInputs, copy_with, on_meta

logger = logging.getLogger(__name__)

# Which of the two sizes each attribute holds, in the model and in the modules around its classifier.
_OF_MODEL = {"num_features": "features", "embed_dim": "features", "head_hidden_size": "hidden"}
_OF_HEAD = {"in_features": "features", "num_features": "hidden", "hidden_size": "hidden"}
TOLD = frozenset(_OF_MODEL) | frozenset(_OF_HEAD)
_METHODS = ("forward_features", "forward_head", "get_classifier")


def feature_edits(dense: nn.Module, compact: nn.Module, inputs: ExampleInputs) -> dict[str, dict[str, int]]:
    """For each module, the new values of the attributes that no longer match the features.

    Both models are run on the meta device; nothing is computed.

    Args:
        dense: The dense model, with its tensors on the meta device.
    """
    if not all(callable(getattr(compact, name, None)) for name in _METHODS):
        return {}
    try:
        before, after = (_sizes(model, inputs) for model in (dense, copy_with(compact, on_meta)))
        heads = _around_classifier(compact)
    except Exception as reason:  # a foreign forward may raise anything, and these sizes are optional
        logger.info("sizes of the features could not be found: %s", reason)
        return {}
    changed = {what: _changed(before[what], after[what]) for what in before}
    edits = {}
    for path, names in {"": _OF_MODEL, **dict.fromkeys(heads, _OF_HEAD)}.items():
        present = vars(compact.get_submodule(path))
        results = {
            name: changed[what][present[name]]
            for name, what in names.items()
            if type(present.get(name)) is int and present[name] in changed[what]
        }
        if results:
            edits[path] = results
    return edits


def _around_classifier(model: nn.Module) -> list[str]:
    """Paths of the modules that contain the classifier."""
    running: Any = model
    classifier = running.get_classifier()
    path = next((path for path, module in model.named_modules() if module is classifier), "")
    parts = path.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def _sizes(model: nn.Module, inputs: ExampleInputs) -> dict[str, torch.Size]:
    """Shapes of the features, and of the classifier's input."""
    given = inputs.map(lambda tensor: tensor.to("meta"))
    running: Any = model.eval()
    with torch.no_grad():
        features = running.forward_features(*given.args, **given.kwargs)
        return {"features": features.shape, "hidden": running.forward_head(features, pre_logits=True).shape}


def _changed(old: torch.Size, new: torch.Size) -> Mapping[int, int]:
    """The size that differs, if any; features have one channel dimension."""
    apart = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
    return dict(apart) if len(apart) == 1 else {}
