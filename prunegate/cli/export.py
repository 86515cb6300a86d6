"""`prunegate export`: write a compact model to another place or format."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunegate.cli.checkpoints import checkpoint_in, model_in
from prunegate.cli.console import console, say
from prunegate.errors import CheckpointError, ExportError

if TYPE_CHECKING:
    from torch import nn

    from prunegate.checkpoint import Document
    from prunegate.groups import ExampleInputs

FORMATS = ("safetensors", "onnx", "pt2")


def export_command(arguments: argparse.Namespace) -> int:
    from prunegate.checkpoint import read_document
    from prunegate.exporting import export_model
    from prunegate.files import replacing

    source, out = checkpoint_in(arguments.source), arguments.out
    format = arguments.format or out.suffix.removeprefix(".")
    _check(out, format, arguments)
    model = model_in(source, arguments.model)
    if format == "safetensors":
        with replacing(out) as temporary:
            shutil.copyfile(source, temporary)
        _tell(arguments, {"format": format}, f"loads with prunegate.load({str(out)!r})")
        return 0
    inputs = _inputs(source, model, arguments.input_size)
    metadata = _metadata(read_document(source))
    done = export_model(model, inputs, out, format, not arguments.fixed_batch, arguments.opset, metadata)
    batches = " and ".join(map(str, done.batches))
    figures = {"format": format, "max_rel": done.max_rel, "batches": list(done.batches)}
    _tell(arguments, figures, f"differs by {done.max_rel:.1e} (relative) on {batches} samples")
    return 0


def _tell(arguments: argparse.Namespace, figures: dict[str, Any], text: str) -> None:
    """Report what was written: as JSON with ``--json``, otherwise as a line unless ``--quiet``."""
    out = arguments.out
    size = out.stat().st_size
    if arguments.json:
        console().print_json(json.dumps({"file": str(out), "bytes": size, **figures}))
    elif not arguments.quiet:
        say(f"{out}: {size:,} bytes, {text}")


def _metadata(document: Document) -> dict[str, str]:
    """Metadata for another format: the model's name, inputs and classes, each as JSON."""
    model = document.builder.full_name if document.builder is not None else document.class_name
    known = {"model": model, **document.extra}
    data = known.pop("data", None)
    known |= data if isinstance(data, dict) else {} if data is None else {"data": data}
    return {
        f"prunegate.{name}": value if isinstance(value, str) else json.dumps(value) for name, value in known.items()
    }


def _check(out: Path, format: str, arguments: argparse.Namespace) -> None:
    """Refuse invalid arguments before anything is loaded."""
    if out.is_dir():
        raise CheckpointError(f"{out}: is a folder, expected the name of a file to write. Add one to it.")
    if format not in FORMATS:
        raise ExportError(f"{out}: {out.suffix!r} is not a known format. Use --format {'|'.join(FORMATS)}.")
    if out.exists() and not arguments.force:
        raise CheckpointError(f"{out}: exists already, expected a new file. Choose another, or use --force.")
    if format == "safetensors" and (arguments.opset or arguments.fixed_batch or arguments.input_size):
        raise ExportError("--opset, --fixed-batch and --input-size do not apply to a checkpoint. Leave them out.")
    if arguments.input_size and any(size < 1 for size in arguments.input_size):
        raise ExportError(
            f"--input-size: found {arguments.input_size}, expected sizes of at least 1, such as 3 224 224."
        )


def _inputs(source: Path, model: nn.Module, size: Sequence[int] | None) -> ExampleInputs:
    import torch

    from prunegate.builders import input_shape
    from prunegate.checkpoint import read_document
    from prunegate.groups import ExampleInputs

    document = read_document(source)
    if size is None and document.fingerprint is not None:
        return document.fingerprint.example_inputs().map(lambda t: t.float() if t.is_floating_point() else t)
    if size is None and document.builder is not None:
        size = input_shape(document.builder, model)
    if size is None:
        raise ExportError(f"{source}: does not say which inputs the model takes. Use --input-size, such as 3 224 224.")
    return ExampleInputs.of(torch.randn(2, *size, generator=torch.Generator().manual_seed(0)))
