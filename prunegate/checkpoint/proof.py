"""Checks that a loaded model is the one that was saved, by its structure or otherwise by its outputs.

The structure's hash is cheap. If it differs although the libraries have the same versions as when the file was saved,
the file is refused. With other versions the stored fingerprint decides, as it does for the caller's own classes, which
may change as well. Files of format 1.0 have no such hash.
"""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

from prunegate.checkpoint.document import Document
from prunegate.checkpoint.effort import effort_of
from prunegate.checkpoint.fingerprint import TOLERANCE, Fingerprint
from prunegate.checkpoint.structure import structure_of, versions
from prunegate.compaction import Rebuilt
from prunegate.errors import CheckpointError

logger = logging.getLogger(__name__)

# Allowed multiple of the model's cost in the file; and a cost that is negligible for any model.
_TIMES, _SPARE_MACS = 2, 200_000_000
# Limit on the bytes of tensors that are alive at once, about three of the largest size.
_MOST_BYTES, _ALIVE = 1 << 30, 3 * 8
# Numbers in the inputs of a model whose cost depends on their values.
_MOST_UNKNOWN = 1 << 24


def check_same(path: Path, document: Document, made: Rebuilt, is_built: bool, verify: bool) -> None:
    """Refuse a model that cannot be shown to be the one that was saved.

    Args:
        made: The loaded model, and how far a fresh analysis confirms its plan.
        is_built: It was built from the name and arguments in the file, not passed by the caller.
        verify: Compute the fingerprint even if the structure matches.

    Raises:
        CheckpointError: It is another model, or the file has no data to check it.
    """
    if verify:
        check_fingerprint(path, document, made.model)
        return
    stored = document.structure_sha256
    has_structure = bool(stored) and structure_of(made.model) == stored
    if has_structure and (made.is_followed or not made.has_guesses or document.fingerprint is None):
        return
    if not stored and not is_built and not made.has_guesses:
        return  # the caller's own model, whose changes all follow from masks
    if stored and not has_structure and is_built and document.versions == versions(document.builder):
        raise CheckpointError(
            f"{path}: structure_sha256: does not match the model, which is built by the same versions of torch and of "
            "its library as when it was saved. The file was changed, or the model itself was changed after it had "
            "been built. To compare its outputs instead, pass verify=True."
        )
    if document.fingerprint is not None:
        check_fingerprint(path, document, made.model)
        return
    if not stored and not is_built and made.is_followed:
        logger.warning("%s: contains nothing to check the sizes that the model's code reads.", path)
        return
    raise CheckpointError(
        f"{path}: {'structure_sha256: does not match the model' if stored else 'structure_sha256: found none'}, and "
        "there is no fingerprint to compare its outputs. The file was changed, or another version of torch or of "
        "the model's library builds it differently. If you trust the file, pass the dense model that it was made "
        "from: load(..., model=...), with strict=False if it still does not match."
    )


def check_fingerprint(path: Path, document: Document, model: nn.Module) -> float:
    """The largest difference of the model's outputs from the stored ones, relative to their size.

    Raises:
        CheckpointError: It is larger than rounding explains, the file has no fingerprint, or running the model would
            cost more than the file says.
    """
    if document.fingerprint is None:
        raise CheckpointError(
            f"{path}: fingerprint: there is none, so the model's outputs cannot be compared. Its inputs or "
            "outputs have no plain form. Load it without verify."
        )
    _check_effort(path, document, document.fingerprint, model)
    try:
        result = document.fingerprint.difference(model)
    except Exception as error:  # a foreign forward may raise anything
        raise CheckpointError(f"{path}: the model does not run: {type(error).__name__}: {error}.") from error
    if not result <= TOLERANCE:
        raise CheckpointError(
            f"{path}: fingerprint: the model computes something else here than where it was saved, by {result:.2g} "
            f"(relative, float64), expected at most {TOLERANCE:g}. The file was changed, or another version of torch "
            "or of the model's library runs it differently. Install the versions it was saved with."
        )
    return result


def _check_effort(path: Path, document: Document, fingerprint: Fingerprint, model: nn.Module) -> None:
    """Refuse a run that would take more time or memory than an honest file's."""
    where, inputs = f"{path}: fingerprint.inputs", fingerprint.form_of_inputs()
    effort = effort_of(model, inputs)
    if effort is None:
        numbers = sum(tensor.numel() for tensor in inputs.tensors())
        if numbers > _MOST_UNKNOWN:
            raise CheckpointError(
                f"{where}: found {numbers} numbers, expected at most {_MOST_UNKNOWN} for a model whose cost is "
                "unknown before it runs. Load it without verify."
            )
        return
    if effort.shapes != tuple(shape for shape, _ in fingerprint.outputs):
        raise CheckpointError(
            f"{where}: give outputs of the shapes {effort.shapes}"[:300] + ", expected those of fingerprint.outputs. "
            "The file was changed, or another version of the model's library runs it differently."
        )
    told = document.costs.get("macs", {}).get("compact", 0) * inputs.batch_size()
    if effort.macs > _TIMES * told + _SPARE_MACS:
        raise CheckpointError(
            f"{where}: to run the model on them takes {effort.macs} MACs, expected about {told} by costs.macs. The "
            "file was changed."
        )
    if effort.largest * _ALIVE > _MOST_BYTES:
        raise CheckpointError(
            f"{where}: to run the model on them takes about {effort.largest * _ALIVE} bytes, expected at most "
            f"{_MOST_BYTES}. Load it without verify; a file of format 1.0 by handing in the dense model: "
            "load(..., model=...)."
        )
