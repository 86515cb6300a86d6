"""Helpers shared by the commands on checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prunegate.errors import CheckpointError, RunFolderError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


def checkpoint_in(source: Path) -> Path:
    """The checkpoint in a run's folder, or the file itself.

    Raises:
        RunFolderError: A folder without a finished run.
    """
    if not source.is_dir() and (source.exists() or source.suffix == ".safetensors"):
        return source
    file = source / "compact.safetensors"
    if not file.is_file():
        raise RunFolderError(
            f"{source}: contains no compact.safetensors, expected the folder of a finished run. "
            "Run a recipe first: prunegate run recipes/quickstart.yaml."
        )
    return file


def model_in(file: Path, model: str | None) -> nn.Module:
    """The compact model of a checkpoint.

    Args:
        model: ``module:function`` that makes the dense model, for a class of the user's own.

    Raises:
        CheckpointError: It cannot be loaded; for a class of the user's own without ``model``, with the option to pass.
    """
    from prunegate.checkpoint import load, read_document

    if model is None and (document := read_document(file)).builder is None:
        raise CheckpointError(
            f"{file}: holds a {document.class_name}, which is neither a timm nor a torchvision model. Code is never "
            "loaded from a file. Pass --model module:function, which makes the dense model."
        )
    return load(file, model=maker_of(model))


def maker_of(name: str | None) -> Callable[[], nn.Module] | None:
    """The function that makes the dense model, if the user named one."""
    from prunegate.own_code import OwnBuilder

    return None if name is None else OwnBuilder(name).build
