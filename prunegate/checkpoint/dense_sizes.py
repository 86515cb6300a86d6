"""Comparison of the dense model's sizes with the file, before anything is done with a model built by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from prunegate.checkpoint.document import Document
from prunegate.errors import CheckpointError

# Numbers that may be missing in any file.
_SPARE = 1 << 20


def compare_sizes(path: Path, dense: nn.Module, document: Document, stored: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a dense model, built without data, whose sizes differ from those of the file's tensors and plan.

    This comes first because the time for tracing a model grows with its number of channels.

    Args:
        stored: Shape of every tensor in the file.

    Raises:
        CheckpointError: A tensor has another size, or more is missing from the file than it contains.
    """
    lacking = held = 0
    for names, tensor in _by_tensor(dense):
        name = next((document.aliases.get(n, n) for n in names if document.aliases.get(n, n) in stored), None)
        if name is None:
            lacking += tensor.numel()
            continue
        held += tensor.numel()
        expected = _before(path, document, names, stored[name])
        if tuple(tensor.shape) != expected:
            raise CheckpointError(
                f"{path}: {names[0]}: found shape {tuple(tensor.shape)} in the dense model, expected {expected} by the "
                "stored tensor and what the plan removed from it. The file is damaged or was made for another model."
            )
    if lacking > held + _SPARE:
        raise CheckpointError(
            f"{path}: tensors: lacks {lacking} numbers of the dense model and holds {held}, expected most of them. The "
            "file was changed, or belongs to another model."
        )


def _by_tensor(model: nn.Module) -> list[tuple[list[str], torch.Tensor]]:
    """Every tensor of a model with all its names."""
    results: dict[int, tuple[list[str], torch.Tensor]] = {}
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        results.setdefault(id(tensor), ([], tensor))[0].append(name)
    return list(results.values())


def _before(path: Path, document: Document, names: list[str], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a tensor before all compactions."""
    sizes = list(shape)
    for number, step in reversed(list(enumerate(document.steps))):
        name = next((n for n in names if n in step.plan.tensors), None)
        for axis, mask in step.plan.tensors[name].items() if name is not None else ():
            if axis >= len(sizes) or sizes[axis] != int(mask.sum()):
                raise CheckpointError(
                    f"{path}: {name}: found shape {shape}, expected {int(mask.sum())} along axis {axis} after "
                    f"steps[{number}] by the file's own plan. The file is damaged or does not belong to this model."
                )
            sizes[axis] = len(mask)
    return tuple(sizes)
