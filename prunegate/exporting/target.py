"""The description of an export format."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunegate.errors import ExportError
from prunegate.groups import ExampleInputs


@dataclass(frozen=True)
class Target:
    """One format.

    Attributes:
        name: The format's name, which is also its file suffix.
        packages: The required packages.
        write: Writes a model: (model, inputs, dynamic sizes of args and kwargs or None, path, opset or None, metadata
            by name).
        run: Runs the file on inputs, and returns all output tensors in order.
    """

    name: str
    packages: tuple[str, ...]
    write: Callable[[nn.Module, ExampleInputs, Any, Path, int | None, Mapping[str, str]], None]
    run: Callable[[Path, ExampleInputs], list[torch.Tensor]]

    def require(self) -> None:
        """Check that the packages are installed.

        Raises:
            ExportError: A package is missing.
        """
        missing = [package for package in self.packages if importlib.util.find_spec(package) is None]
        if missing:
            raise ExportError(
                f"{self.name}: needs the package{'s' if len(missing) > 1 else ''} {', '.join(missing)}. "
                f"Install them: pip install 'prunegate[{self.name}]'."
            )
