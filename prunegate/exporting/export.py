"""`export_model`: write a model as ONNX or as an exported program, and check that it computes the same."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from prunegate.compaction import gap, outputs_of
from prunegate.errors import ExportError
from prunegate.exporting import onnx, pt2
from prunegate.exporting.target import Target
from prunegate.files import replacing
from prunegate.groups import ExampleInputs, copy_with
from prunegate.modes import eval_mode
from prunegate.quiet import quietly

logger = logging.getLogger(__name__)

# Largest relative difference, max|exported − model| / max|model|, at which a file is written.
TOLERANCE = 1e-4
FORMATS: Mapping[str, Target] = {"onnx": onnx.TARGET, "pt2": pt2.TARGET}
# Loggers of the exporters.
_NOISY = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")


@dataclass(frozen=True)
class Exported:
    """An exported file and its measured difference.

    Attributes:
        max_rel: Largest difference over all outputs and inputs, relative to the largest output.
        batches: Batch sizes that it was run with.
    """

    path: Path
    format: str
    max_rel: float
    batches: tuple[int, ...]


def export_model(
    model: nn.Module,
    inputs: ExampleInputs,
    path: Path,
    format: str,
    dynamic_batch: bool = True,
    opset: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Exported:
    """Write ``model``, in eval mode, as a file of another format.

    The file is run on noise of the inputs' form and compared with the model; with a dynamic batch also on another
    number of samples. It is written only after this check, atomically.

    Args:
        inputs: The model's inputs; the leading size of the first tensor is the batch size.
        format: ``"onnx"`` or ``"pt2"`` (`torch.export`).
        dynamic_batch: Export with a dynamic batch size.
        opset: ONNX operator set version; by default the one that torch recommends.
        metadata: Strings to store in the file by name: in ONNX's ``metadata_props``, or in the extra file
            ``prunegate.json`` of exported programs.

    Raises:
        ExportError: A package is missing, the model cannot be exported, or the file's outputs differ.
    """
    if format not in FORMATS:
        raise ExportError(f"format: found {format!r}, expected one of {', '.join(FORMATS)}.")
    if opset is not None and format != "onnx":
        raise ExportError(f"opset: found {opset} for the format {format}, which has no opset. Leave it out.")
    target = FORMATS[format]
    target.require()
    if dynamic_batch and inputs.batch_size() == 1:
        inputs = inputs.doubled()  # with one sample, exporters treat the batch size as a constant
    with eval_mode(model), quietly(*_NOISY), torch.no_grad(), replacing(path) as temporary:
        _write(target, model, inputs, temporary, dynamic_batch, opset, metadata or {})
        cases = [inputs, _more_samples(inputs)] if dynamic_batch else [inputs]
        worst = _difference(target, model, cases, temporary)
    return Exported(path, format, worst, tuple(case.batch_size() for case in cases))


def _write(
    target: Target,
    model: nn.Module,
    inputs: ExampleInputs,
    path: Path,
    dynamic_batch: bool,
    opset: int | None,
    metadata: Mapping[str, str],
) -> None:
    try:
        target.write(copy_with(model), inputs, _dynamic_sizes(inputs) if dynamic_batch else None, path, opset, metadata)
    except Exception as error:  # exporters run the model's own code, and may raise anything
        what_to_do = (
            "Its code may fix the number of samples: pass dynamic_batch=False (--fixed-batch). "
            if dynamic_batch
            else "Its code may depend on values, which static formats cannot represent. "
        )
        short = " ".join(str(error).split())[:500]
        raise ExportError(
            f"{path.suffix.lstrip('.')}: the model cannot be exported: {type(error).__name__}: {short}. {what_to_do}"
            "Export the dense model to find out whether the model itself is the cause."
        ) from error


def _difference(target: Target, model: nn.Module, cases: Sequence[ExampleInputs], path: Path) -> float:
    worst = 0.0
    for case in cases:
        expected = outputs_of(model, case)
        try:
            actual = target.run(path, case)
        except Exception as error:  # a foreign runtime may raise anything
            short = " ".join(str(error).split())[:500]
            raise ExportError(
                f"the exported model does not run with {case.batch_size()} samples: {type(error).__name__}: {short}. "
                "Nothing was written. If it runs with as many as it was exported with, pass dynamic_batch=False "
                "(--fixed-batch)."
            ) from error
        worst = max(worst, _relative(expected, actual))
    if not worst <= TOLERANCE:
        raise ExportError(
            f"the exported model differs from the compact one by {worst:.2g} (relative), expected at most "
            f"{TOLERANCE:g}. Nothing was written. Try another opset, or another format."
        )
    return worst


def _relative(expected: Sequence[torch.Tensor], actual: Sequence[torch.Tensor]) -> float:
    return gap(expected, actual).max_rel


def _dynamic_sizes(inputs: ExampleInputs) -> Any:
    """For `torch.export`: the dynamic batch dimension of every tensor that has one."""
    size = inputs.batch_size()
    batch = torch.export.Dim("batch", min=1)

    def of(entry: Any) -> Any:
        follows = isinstance(entry, torch.Tensor) and entry.dim() > 0 and entry.shape[0] == size
        return {0: batch} if follows else None

    return tree_map(of, inputs.args), tree_map(of, inputs.kwargs)


def _more_samples(inputs: ExampleInputs) -> ExampleInputs:
    """The inputs with one more sample, a repetition of the first."""
    size = inputs.batch_size()
    return inputs.map(lambda t: torch.cat([t, t[:1]]) if t.dim() > 0 and t.shape[0] == size else t)
