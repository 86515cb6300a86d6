"""ONNX files, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunegate.exporting.pt2 import program_of
from prunegate.exporting.target import Target
from prunegate.groups import ExampleInputs


def _write(
    model: nn.Module, inputs: ExampleInputs, sizes: Any, path: Path, opset: int | None, metadata: Mapping[str, str]
) -> None:
    program = torch.onnx.export(
        program_of(model, inputs, sizes), opset_version=opset, external_data=False, dynamo=True, verbose=False
    )
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=False)


def _run(path: Path, inputs: ExampleInputs) -> list[torch.Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    tensors = inputs.tensors()
    # Inputs are in the order of the arguments; if the model ignores some, the others are passed by name.
    by_name = dict(zip(names, tensors, strict=True)) if len(names) == len(tensors) else inputs.kwargs
    by_name = {name: by_name[name] for name in names}
    result = session.run(None, {name: tensor.detach().cpu().numpy() for name, tensor in by_name.items()})
    return [torch.from_numpy(output) for output in result]


TARGET = Target("onnx", ("onnx", "onnxscript", "onnxruntime"), _write, _run)
