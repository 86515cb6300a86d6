"""`prunegate verify`: is a checkpoint whole, and does it compute what it did when it was saved?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from prunegate.cli.checkpoints import checkpoint_in, maker_of
from prunegate.cli.console import say
from prunegate.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from prunegate.checkpoint import Document


def verify_command(arguments: argparse.Namespace) -> int:
    from prunegate.checkpoint import load, read_document
    from prunegate.checkpoint.proof import check_fingerprint

    file, maker = checkpoint_in(arguments.file), maker_of(arguments.model)
    document = read_document(file)
    model = load(file, model=maker)
    found = [f"{file}: weights match their hash, and fit the model by the plan"]
    if document.fingerprint is None:
        found.append("fingerprint: none stored, so what the model computes cannot be compared")
    else:
        apart = check_fingerprint(file, document, model)
        found.append(f"fingerprint: computes what it did when saved, within {apart:.1e} (relative, float64)")
    if arguments.against is not None:
        found.append(_against(file, document, model, arguments.against, maker))
    if not arguments.quiet:
        say("\n".join(found))  # at the end, when nothing was found wrong
    return 0


def _against(
    file: Path, document: Document, model: nn.Module, dense: Path, maker: Callable[[], nn.Module] | None
) -> str:
    """Cut the dense model by the plan, and tell how much of the compact one's weights that gives."""
    import torch

    from prunegate.checkpoint import StoredPlan
    from prunegate.weight_files import load_weights

    if maker is None and document.builder is None:
        raise CheckpointError(f"{file}: holds an own class. Say --model module:function, which makes the dense model.")
    original = maker() if maker is not None else document.builder.build()  # type: ignore[union-attr]
    load_weights(original, dense, "--against", CheckpointError)
    cut = StoredPlan(document.steps, str(file)).apply_in_place(original).requires_grad_(False)
    expected = dict(cut.named_parameters())
    found = dict(model.requires_grad_(False).named_parameters())
    same = sum(torch.equal(found[name], expected[name]) for name in found if name in expected)
    if same == len(found):
        return f"against {dense}: every parameter is the dense model's, cut by the plan"
    largest = max(
        float((found[name] - value).norm() / value.norm().clamp(min=1e-12)) for name, value in expected.items()
    )
    return (
        f"against {dense}: {same} of {len(found)} parameters are the dense model's, cut by the plan; the others have "
        f"been trained since, by up to {largest:.2g} of their norm"
    )
