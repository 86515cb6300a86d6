"""`prunegate verify`: is a checkpoint whole, and does it compute what it did when it was saved?"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunegate.cli.checkpoints import checkpoint_in, maker_of
from prunegate.cli.console import console, say
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
    told = [f"{file}: weights match their hash, and fit the model by the plan"]
    figures: dict[str, Any] = {"file": str(file), "weights_sha256": document.weights_sha256, "fingerprint": None}
    if document.fingerprint is None:
        told.append("fingerprint: none stored, so what the model computes cannot be compared")
    else:
        apart = check_fingerprint(file, document, model)
        told.append(f"fingerprint: computes what it did when saved, within {apart:.1e} (relative, float64)")
        figures["fingerprint"] = {"max_rel": apart}
    if arguments.against is not None:
        against = _against(file, document, model, arguments.against, maker)
        told.append(against.text)
        figures["against"] = asdict(against)
    # At the end, when nothing was found wrong.
    if arguments.json:
        console().print_json(json.dumps(figures))
    elif not arguments.quiet:
        say("\n".join(told))
    return 0


@dataclass(frozen=True)
class _Against:
    """How many of the compact model's parameters are the dense one's, cut by the plan, and how far the others are."""

    file: str
    parameters: int
    equal: int
    largest_difference: float

    @property
    def text(self) -> str:
        if self.equal == self.parameters:
            return f"against {self.file}: every parameter is the dense model's, cut by the plan"
        return (
            f"against {self.file}: {self.equal} of {self.parameters} parameters are the dense model's, cut by the "
            f"plan; the others have been trained since, by up to {self.largest_difference:.2g} of their norm"
        )


def _against(
    file: Path, document: Document, model: nn.Module, dense: Path, maker: Callable[[], nn.Module] | None
) -> _Against:
    """Cut the dense model by the plan, and see how much of the compact one's weights that gives."""
    import torch

    from prunegate.checkpoint import StoredPlan
    from prunegate.weight_files import load_weights

    if maker is None and document.builder is None:
        raise CheckpointError(f"{file}: holds an own class. Say --model module:function, which makes the dense model.")
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
