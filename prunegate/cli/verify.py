"""`prunegate verify`: check that a checkpoint is intact and its outputs are those from when it was saved."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunegate.cli.checkpoints import checkpoint_in, maker_of, model_in
from prunegate.cli.console import console, say
from prunegate.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from prunegate.checkpoint import Document


def verify_command(arguments: argparse.Namespace) -> int:
    from prunegate.checkpoint import read_document
    from prunegate.checkpoint.proof import check_fingerprint

    file, maker = checkpoint_in(arguments.file), maker_of(arguments.model)
    document = read_document(file)
    model = model_in(file, arguments.model)
    told = [f"{file}: weights match their hash, and fit the model cut by the plan"]
    figures: dict[str, Any] = {"file": str(file), "weights_sha256": document.weights_sha256, "fingerprint": None}
    if document.fingerprint is None:
        told.append("fingerprint: none stored, so the outputs cannot be compared")
    else:
        apart = check_fingerprint(file, document, model)
        told.append(f"fingerprint: outputs are those when saved, within {apart:.1e} (relative, float64)")
        figures["fingerprint"] = {"max_rel": apart}
    if arguments.against is not None:
        against = _against(file, document, model, arguments.against, maker)
        told.append(against.text)
        figures["against"] = asdict(against)
    # Last, so that nothing is printed if a check fails.
    if arguments.json:
        console().print_json(json.dumps(figures))
    elif not arguments.quiet:
        say("\n".join(told))
    return 0


@dataclass(frozen=True)
class _Against:
    """How many of the compact model's parameters are those of the dense model after the cut; how far off the others
    are."""

    file: str
    parameters: int
    equal: int
    largest_difference: float

    @property
    def text(self) -> str:
        if self.equal == self.parameters:
            return f"against {self.file}: every parameter equals the dense model's after the cut"
        return (
            f"against {self.file}: {self.equal} of {self.parameters} parameters equal the dense model's after the cut; "
            f"the others have been trained since, by up to {self.largest_difference:.2g} of their norm"
        )


def _against(
    file: Path, document: Document, model: nn.Module, dense: Path, maker: Callable[[], nn.Module] | None
) -> _Against:
    """Cut the dense model by the plan, and compare its weights with the compact model's."""
    import torch

    from prunegate.checkpoint import StoredPlan
    from prunegate.weight_files import load_weights

    if maker is None and document.builder is None:
        raise CheckpointError(
            f"{file}: holds a class of your own. Use --model module:function, which makes the dense model."
        )
    original = maker() if maker is not None else document.builder.build()  # type: ignore[union-attr]
    load_weights(original, dense, "--against", CheckpointError)
    cut = StoredPlan(document.steps, str(file)).apply_in_place(original).requires_grad_(False)
    expected = dict(cut.named_parameters())
    actual = dict(model.requires_grad_(False).named_parameters())
    same = sum(torch.equal(actual[name], expected[name]) for name in actual if name in expected)
    largest = max(
        float((actual[name] - value).norm() / value.norm().clamp(min=1e-12))
        for name, value in expected.items()
        if name in actual
    )
    return _Against(str(dense), len(actual), same, largest)
