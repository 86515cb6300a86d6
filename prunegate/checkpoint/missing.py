"""Values for tensors that are missing from a file, if the caller allows it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from prunegate.errors import CheckpointError


def initialise(path: Path, model: nn.Module) -> None:
    """Initialise every tensor on the meta device by its layer's ``reset_parameters``.

    The dense model is not built with data for this, as it may be many times larger than the file.

    Raises:
        CheckpointError: The layer of a tensor has no initialisation.
    """
    lacking = {
        owner: names
        for owner, module in model.named_modules()
        if (names := [name for name, tensor in _own(module).items() if tensor.is_meta])
    }
    for owner, names in lacking.items():
        module = model.get_submodule(owner)
        reset = getattr(module, "reset_parameters", None)
        if not callable(reset):
            raise CheckpointError(
                f"{path}: {owner}.{names[0]}: is not in the file, and a {type(module).__name__} does not define its "
                "initialisation. Pass a dense model that has it: load(..., model=..., strict=False)."
            )
        _reset(module, names)


def _own(module: nn.Module) -> dict[str, torch.Tensor]:
    results = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in results.items() if tensor is not None}


def _reset(module: nn.Module, names: list[str]) -> None:
    """Initialise all tensors of a module, and keep the values of the missing ones."""
    parameters, buffers = dict(module._parameters), dict(module._buffers)
    for name, parameter in parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(_empty(parameter), parameter.requires_grad)
    for name, buffer in buffers.items():
        if buffer is not None:
            module._buffers[name] = _empty(buffer)
    with torch.random.fork_rng(devices=[]):
        module.reset_parameters()  # type: ignore[operator]
    module._parameters.update({name: parameter for name, parameter in parameters.items() if name not in names})
    module._buffers.update({name: buffer for name, buffer in buffers.items() if name not in names})


def _empty(like: torch.Tensor) -> torch.Tensor:
    return torch.empty(like.shape, dtype=like.dtype)
