"""Exported programs of `torch.export`, the format of AOTInductor and ExecuTorch."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunegate.compaction import outputs_of
from prunegate.exporting.target import Target
from prunegate.groups import ExampleInputs

# The extra file of an exported program with its metadata.
METADATA = "prunegate.json"


def _write(
    model: nn.Module, inputs: ExampleInputs, sizes: Any, path: Path, opset: int | None, metadata: Mapping[str, str]
) -> None:
    extra = {METADATA: json.dumps(dict(metadata))} if metadata else None
    torch.export.save(program_of(model, inputs, sizes), path, extra_files=extra)


def program_of(model: nn.Module, inputs: ExampleInputs, sizes: Any) -> torch.export.ExportedProgram:
    """The exported program; ``sizes`` are the dynamic sizes of args and kwargs, or None."""
    dynamic = None
    if sizes is not None:
        args, kwargs = sizes
        dynamic = _by_name(model, args, kwargs) if kwargs else args
    return torch.export.export(model, inputs.args, inputs.kwargs, dynamic_shapes=dynamic, strict=False)


def _by_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = list(inspect.signature(model.forward).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _run(path: Path, inputs: ExampleInputs) -> list[torch.Tensor]:
    return outputs_of(torch.export.load(path).module(), inputs)


TARGET = Target("pt2", (), _write, _run)
