"""Helpers shared by the commands on checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prunegate.errors import RunFolderError

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


def maker_of(name: str | None) -> Callable[[], nn.Module] | None:
    """The function that makes the dense model, if the user named one."""
    from prunegate.own_code import OwnBuilder

    return None if name is None else OwnBuilder(name).build
