"""Loading: the dense model without data, cut by the plan, given the stored tensors."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from prunegate.checkpoint.document import Document
from prunegate.checkpoint.files import hash_compared, read_document, read_tensors
from prunegate.checkpoint.fingerprint import TOLERANCE
from prunegate.checkpoint.origin import Origin, set_origin
from prunegate.checkpoint.steps import StoredPlan
from prunegate.errors import CheckpointError, ModelNameError

logger = logging.getLogger(__name__)


def load(
    path: str | os.PathLike[str],
    model: nn.Module | Callable[[], nn.Module] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    strict: bool = True,
    verify: bool = False,
) -> nn.Module:
    """The compact model stored in ``path``, in eval mode.

    Args:
        model: For classes that are neither timm's nor torchvision's: a dense instance of the model's class,
            which is cut in place and given the stored weights, or a function that makes one.
        device: Where to put it; by default the CPU.
        dtype: Type of its floating tensors; by default as stored.
        strict: Refuse a file that lacks tensors of the model or has others. If false, tensors that are lacking
            keep the model's own values and others are left out; both are logged.
        verify: Compute the stored fingerprint again and refuse a model that computes something else here, as
            another version of torch or of the model's library may make it.

    Raises:
        CheckpointError: The file is damaged, is no prunegate checkpoint, or does not fit the model.
    """
    path = Path(path)
    document = read_document(path)
    with hash_compared(path, document):
        tensors = read_tensors(path)
        loaded = _loaded(path, document, tensors, model, strict)
    loaded.eval()
    dense_costs = {metric: costs["dense"] for metric, costs in document.costs.items() if "dense" in costs}
    set_origin(loaded, Origin(document.steps, document.class_name, document.builder, None, dense_costs))
    if verify:
        check_fingerprint(path, document, loaded)
    return loaded.to(device=device, dtype=dtype) if device is not None or dtype is not None else loaded


def _loaded(
    path: Path,
    document: Document,
    tensors: Mapping[str, torch.Tensor],
    model: nn.Module | Callable[[], nn.Module] | None,
    strict: bool,
) -> nn.Module:
    if model is None:
        if document.builder is None:
            raise CheckpointError(
                f"{path}: holds a {document.class_name}, which is neither a timm nor a torchvision model. "
                f"Code is never loaded from a file. Hand in a dense instance: load({str(path)!r}, model=...)."
            )
        return _load_built(path, document, tensors, strict)
    dense = model if isinstance(model, nn.Module) else model()
    if not isinstance(dense, nn.Module):
        raise CheckpointError(f"{path}: model: made a {type(dense).__name__}, expected a dense nn.Module.")
    return _fill(path, dense, document, tensors, strict)


def check_fingerprint(path: Path, document: Document, model: nn.Module) -> float:
    """How far the model's outputs are from the stored ones, relative to their size.

    Raises:
        CheckpointError: Further than rounding explains, or the file has no fingerprint.
    """
    if document.fingerprint is None:
        raise CheckpointError(
            f"{path}: fingerprint: there is none, so what the model computes cannot be compared. Its inputs or "
            "outputs have no plain form. Load it without verify."
        )
    try:
        found = document.fingerprint.difference(model)
    except Exception as error:  # a foreign forward may raise anything
        raise CheckpointError(f"{path}: the model does not run: {type(error).__name__}: {error}.") from error
    if not found <= TOLERANCE:
        raise CheckpointError(
            f"{path}: fingerprint: the model computes something else here than where it was saved, by {found:.2g} "
            f"(relative, float64), expected at most {TOLERANCE:g}. Another version of torch or of the model's library "
            "runs it differently. Install the versions it was saved with."
        )
    return found


def _load_built(path: Path, document: Document, tensors: Mapping[str, torch.Tensor], strict: bool) -> nn.Module:
    assert document.builder is not None
    most = len(tensors) + len(document.aliases)
    try:
        if not strict:  # what the file lacks needs a value
            return _fill(path, document.builder.build(), document, tensors, strict)
        filled = _fill(path, document.builder.on_meta(most), document, tensors, strict)
        if any(torch.is_tensor(v) and v.is_meta for module in filled.modules() for v in vars(module).values()):
            # A tensor that the constructor derived and keeps elsewhere needs to be a real one. By now it is
            # known that the model is as large as the file's tensors say.
            filled = _fill(path, document.builder.build(), document, tensors, strict)
    except ModelNameError as error:
        raise CheckpointError(f"{path}: builder: {error}") from error
    return filled


def _fill(
    path: Path, model: nn.Module, document: Document, tensors: Mapping[str, torch.Tensor], strict: bool
) -> nn.Module:
    """Cut a dense model by the document's plan and give it the stored tensors."""
    model = StoredPlan(document.steps, str(path)).apply_in_place(model)
    everything = dict(tensors)
    for alias, name in document.aliases.items():
        if name not in tensors:
            raise CheckpointError(f"{path}: aliases.{alias}: names {name!r:.80}, which is not stored in the file.")
        everything[alias] = tensors[name]
    present: dict[str, torch.Tensor] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    _compare_names(path, document, sorted(present.keys() - everything.keys()), everything.keys() - present, strict)
    modules = dict(model.named_modules(remove_duplicate=False))
    made: dict[int, nn.Parameter] = {}
    for name, old in present.items():
        new = everything.get(name)
        if new is None:
            continue
        if new.shape != old.shape:
            raise CheckpointError(
                f"{path}: {name}: found shape {tuple(new.shape)}, expected {tuple(old.shape)} by the file's own plan. "
                "The file is damaged or does not belong to this model."
            )
        if new.dtype != old.dtype and not (new.is_floating_point() and old.is_floating_point()):
            raise CheckpointError(
                f"{path}: {name}: found {new.dtype}, expected {old.dtype}. Only floating types may differ from the "
                "dense model's. The file is damaged or does not belong to this model."
            )
        owner, _, attribute = name.rpartition(".")
        module = modules[owner]
        if isinstance(old, nn.Parameter):
            parameter = made.setdefault(id(new), nn.Parameter(new, requires_grad=old.requires_grad))
            module._parameters[attribute] = parameter
        else:
            module._buffers[attribute] = new
    return model


def _compare_names(path: Path, document: Document, missing: list[str], others: set[str], strict: bool) -> None:
    unexpected = sorted(others)
    if not missing and not unexpected:
        return
    found = (
        f"{path}: tensors: found {len(unexpected)} that the model does not have ({', '.join(unexpected[:3])}) and "
        f"{len(missing)} missing ({', '.join(missing[:3])}), expected the tensors of {document.class_name}."
    )
    if strict:
        raise CheckpointError(f"{found} To load what fits, say strict=False.")
    logger.warning("%s What fits is loaded.", found)
