"""`prunegate export`: a compact model in another place or format."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prunegate.cli.checkpoints import checkpoint_in, maker_of
from prunegate.cli.console import say
from prunegate.errors import CheckpointError, ExportError

if TYPE_CHECKING:
    from torch import nn

    from prunegate.groups import ExampleInputs

FORMATS = ("safetensors", "onnx", "pt2")


def export_command(arguments: argparse.Namespace) -> int:
    from prunegate.checkpoint import load
    from prunegate.exporting import export_model
    from prunegate.files import replacing

    source, out = checkpoint_in(arguments.source), arguments.out
    format = arguments.format or out.suffix.removeprefix(".")
    _check(out, format, arguments)
    model = load(source, model=maker_of(arguments.model))
    if format == "safetensors":
        with replacing(out) as temporary:
            shutil.copyfile(source, temporary)
        if not arguments.quiet:
            say(f"{out}: {out.stat().st_size:,} bytes, loads with prunegate.load({str(out)!r})")
        return 0
    inputs = _inputs(source, model, arguments.input_size)
    done = export_model(model, inputs, out, format, not arguments.fixed_batch, arguments.opset)
    batches = " and ".join(map(str, done.batches))
    if not arguments.quiet:
        say(f"{out}: {out.stat().st_size:,} bytes, differs by {done.max_rel:.1e} (relative) on {batches} samples")
    return 0


def _check(out: Path, format: str, arguments: argparse.Namespace) -> None:
    """Refuse what cannot go well before anything is loaded."""
    if out.is_dir():
        raise CheckpointError(f"{out}: is a folder, expected the name of a file to write. Add one to it.")
    if format not in FORMATS:
        raise ExportError(f"{out}: ends in {out.suffix!r}, which is no known format. Say --format {'|'.join(FORMATS)}.")
    if out.exists() and not arguments.force:
        raise CheckpointError(f"{out}: exists already, expected a new file. Choose another, or say --force.")
    if format == "safetensors" and (arguments.opset or arguments.fixed_batch or arguments.input_size):
        raise ExportError("--opset, --fixed-batch and --input-size say nothing of a checkpoint. Leave them out.")
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
        raise ExportError(f"{source}: does not say what the model is called with. Say --input-size, such as 3 224 224.")
    return ExampleInputs.of(torch.randn(2, *size, generator=torch.Generator().manual_seed(0)))
