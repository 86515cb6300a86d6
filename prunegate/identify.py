"""Identifying the timm or torchvision name that builds a given model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from prunegate import cifar_resnet
from prunegate.builders import Builder
from prunegate.errors import ModelNameError


def identify(model: nn.Module) -> Builder | None:
    """The builder that makes a model of the same structure as ``model``, or None.

    Candidates are built on the meta device and compared by the shapes of all tensors and by their
    printed structure, so nothing is computed and no weights are needed.
    """
    wanted = _structure(model)
    for name, arguments in _candidates(model):
        try:
            builder = Builder.parse(name, arguments)
            skeleton = builder.skeleton()
        except ModelNameError:
            continue
        if _structure(skeleton) == wanted:
            return builder
    return None


def _structure(model: nn.Module) -> tuple[str, dict[str, torch.Size]]:
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return repr(model), {name: tensor.shape for name, tensor in tensors}


def _candidates(model: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names that may build the model, each with the arguments that its tensors suggest."""
    home = type(model).__module__.split(".")[0]
    if isinstance(model, cifar_resnet.CifarResNet):
        for network in cifar_resnet.list_models():
            yield from ((f"prunegate/{network}", arguments) for arguments in _arguments(model, "in_chans"))
    elif home == "timm":
        config = getattr(model, "pretrained_cfg", None)
        name = config.get("architecture") if isinstance(config, dict) else getattr(config, "architecture", None)
        if isinstance(name, str):
            yield from ((f"timm/{name}", arguments) for arguments in _arguments(model, "in_chans"))
    elif home == "torchvision":
        from torchvision.models import get_model_builder, list_models

        for name in list_models():
            if get_model_builder(name).__module__ == type(model).__module__:
                yield from ((f"torchvision/{name}", arguments) for arguments in _arguments(model, None))


def _arguments(model: nn.Module, channels_name: str | None) -> Iterator[dict[str, Any]]:
    """No arguments, the number of classes, the input channels, and both."""
    classes = getattr(model, "num_classes", None)
    if not isinstance(classes, int):
        linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
        classes = linear[-1].out_features if linear else None
    first = next((p for p in model.parameters() if p.dim() > 2), None)
    by_classes = [{}] if classes is None else [{}, {"num_classes": classes}]
    for arguments in by_classes:
        yield dict(arguments)
    if channels_name is not None and first is not None:
        for arguments in by_classes:
            yield {**arguments, channels_name: int(first.shape[1])}
