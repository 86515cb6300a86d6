"""What every format has to say of itself."""

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
        name: Of the format, which is its file's suffix too.
        packages: What has to be installed.
        write: Writes a model: (model, inputs, dynamic sizes of args and kwargs or None, path, opset or None, texts to
            keep in the file by name).
        run: Runs the file on inputs, and gives all output tensors in order.
    """

    name: str
    packages: tuple[str, ...]
    write: Callable[[nn.Module, ExampleInputs, Any, Path, int | None, Mapping[str, str]], None]
    run: Callable[[Path, ExampleInputs], list[torch.Tensor]]

    def require(self) -> None:
        """Make sure that the packages are there.

        Raises:
            ExportError: One is missing.
        """
        missing = [package for package in self.packages if importlib.util.find_spec(package) is None]
        if missing:
            raise ExportError(
                f"{self.name}: needs the package{'s' if len(missing) > 1 else ''} {', '.join(missing)}. "
                f"Install them: pip install 'prunegate[{self.name}]'."
            )
