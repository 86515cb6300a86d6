"""Loading: build the dense model without data, cut it by the plan, and load the stored tensors."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Set
from pathlib import Path

import torch
from torch import nn

from prunegate.checkpoint.dense_sizes import compare_sizes
from prunegate.checkpoint.document import Document
from prunegate.checkpoint.files import hash_compared, read_document, read_tensors
from prunegate.checkpoint.missing import initialise
from prunegate.checkpoint.origin import Origin, set_origin
from prunegate.checkpoint.proof import check_fingerprint, check_same
from prunegate.checkpoint.steps import StoredPlan
from prunegate.compaction import Rebuilt
from prunegate.errors import CheckpointError, ModelNameError, first_line

logger = logging.getLogger(__name__)


def load(
    path: str | os.PathLike[str],
    model: nn.Module | Callable[[], nn.Module] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    strict: bool = True,
    verify: bool = False,
) -> nn.Module:
    """Load the compact model stored in ``path``, in eval mode.

    The plan is compared with a fresh analysis of the dense model, which is built without data, and the loaded model's
    structure with the stored hash. If that is not conclusive (a file of format 1.0, another version of the model's
    library), the fingerprint is computed again and compared.

    Args:
        model: For classes that are neither timm's nor torchvision's: a dense instance of the model's class,
            which is cut in place and gets the stored weights, or a function that makes one.
        device: The model's device; by default the CPU.
        dtype: Type of its floating-point tensors; by default as stored.
        strict: Refuse a file with missing or unexpected tensors. If false, missing tensors keep the values of the
            passed model, or are initialised by their layers, and unexpected ones are ignored. Both are logged, and it
            is not checked whether the model is the one that was saved.
        verify: Compute the fingerprint again and refuse a model whose outputs differ, for example because of another
            version of torch or of the model's library.

    Raises:
        CheckpointError: The file is damaged, is not a prunegate checkpoint, or does not fit the model; or the device or
            type does not exist.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise CheckpointError(f"load: found {path!r}, expected the path of a checkpoint.")
    _check_place(device, dtype)
    path = Path(path)
    document = read_document(path)
    with hash_compared(path, document):
        tensors = read_tensors(path)
        made, is_whole = _loaded(path, document, tensors, model, strict)
    loaded = made.model.eval()
    if is_whole:
        check_same(path, document, made, model is None, verify)
    elif verify:
        check_fingerprint(path, document, loaded)
    dense_costs = {metric: costs["dense"] for metric, costs in document.costs.items() if "dense" in costs}
    set_origin(loaded, Origin(document.steps, document.class_name, document.builder, None, dense_costs))
    return loaded.to(device=device, dtype=dtype) if device is not None or dtype is not None else loaded


def _loaded(
    path: Path,
    document: Document,
    tensors: Mapping[str, torch.Tensor],
    model: nn.Module | Callable[[], nn.Module] | None,
    strict: bool,
) -> tuple[Rebuilt, bool]:
    """The model, and whether the file's tensors match it exactly, which ``strict`` requires."""
    if model is None:
        if document.builder is None:
            raise CheckpointError(
                f"{path}: holds a {document.class_name}, which is neither a timm nor a torchvision model. "
                f"Code is never loaded from a file. Pass a dense instance: load({str(path)!r}, model=...)."
            )
        return _load_built(path, document, tensors, strict)
    dense = model if isinstance(model, nn.Module) else _made(path, model)
    if not isinstance(dense, nn.Module):
        raise CheckpointError(f"{path}: model: made a {type(dense).__name__}, expected a dense nn.Module.")
    return _fill(path, dense, document, tensors, strict)


def _made(path: Path, make: Callable[[], nn.Module]) -> nn.Module:
    """The dense model made by the user's function or class."""
    name = getattr(make, "__name__", type(make).__name__)
    if not callable(make):
        raise CheckpointError(
            f"{path}: model: found a {name}, expected a dense instance, or a function that makes one."
        )
    try:
        return make()
    except Exception as error:  # the user's code may raise anything
        raise CheckpointError(
            f"{path}: model: {name}() raised {type(error).__name__}: {error}. Pass a dense instance with the "
            f"arguments that it had: load({str(path)!r}, model={name}(...))."
        ) from error


def _check_place(device: torch.device | str | None, dtype: torch.dtype | None) -> None:
    """Refuse an unavailable device or type before anything is read."""
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"load: dtype: found {dtype!r}, expected a type of torch, such as torch.float16.")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        known = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        said = first_line(error)
        raise CheckpointError(
            f"load: device: found {str(device)!r}, expected one that this machine has, such as {' or '.join(known)}. "
            f"torch says: {said}"
        ) from error


def _load_built(
    path: Path, document: Document, tensors: Mapping[str, torch.Tensor], strict: bool
) -> tuple[Rebuilt, bool]:
    assert document.builder is not None
    most = len(tensors) + len(document.aliases)
    try:
        model = document.builder.on_meta(most)
        if strict and not any(step.fix_ups.replays for step in document.steps):  # replaying adds literals
            _compare_names(path, document, model, {*tensors, *document.aliases}, strict)
        compare_sizes(path, model, document, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
        filled, is_whole = _fill(path, model, document, tensors, strict)
        kept = [v for module in filled.model.modules() for v in vars(module).values() if torch.is_tensor(v)]
        if any(tensor.is_meta for tensor in kept):
            # Tensors that the constructor computes and stores elsewhere have to be real ones. By now it is known that
            # the model is as large as the file's tensors say.
            if sum(tensor.numel() for tensor in kept) > _SPARE + 4 * sum(t.numel() for t in tensors.values()):
                raise CheckpointError(f"{path}: builder: the model keeps more numbers than the file explains.")
            filled, is_whole = _fill(path, document.builder.build(), document, tensors, strict)
    except ModelNameError as error:
        raise CheckpointError(f"{path}: builder: {error}") from error
    if not is_whole:
        initialise(path, filled.model)
    return filled, is_whole


# Numbers that a constructor may store besides parameters and buffers.
_SPARE = 1 << 20


def _fill(
    path: Path, model: nn.Module, document: Document, tensors: Mapping[str, torch.Tensor], strict: bool
) -> tuple[Rebuilt, bool]:
    """Cut a dense model by the document's plan and load the stored tensors; return whether they match exactly."""
    made = StoredPlan(document.steps, str(path)).made_again(model)
    model = made.model
    everything = dict(tensors)
    for alias, name in document.aliases.items():
        if name not in tensors:
            raise CheckpointError(f"{path}: aliases.{alias}: names {name!r:.80}, which is not stored in the file.")
        everything[alias] = tensors[name]
    is_whole = _compare_names(path, document, model, everything.keys(), strict)
    present = _present(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    parameters: dict[int, nn.Parameter] = {}
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
            parameter = parameters.setdefault(id(new), nn.Parameter(new, requires_grad=old.requires_grad))
            module._parameters[attribute] = parameter
        else:
            module._buffers[attribute] = new
    return made, is_whole


def _present(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _compare_names(path: Path, document: Document, model: nn.Module, stored: Set[str], strict: bool) -> bool:
    """Whether the names of the file's tensors are those of the model."""
    present = _present(model).keys()
    missing, unexpected = sorted(present - stored), sorted(stored - present)
    if not missing and not unexpected:
        return True
    result = (
        f"{path}: tensors: found {len(unexpected)} that the model does not have ({', '.join(unexpected[:3])}) and "
        f"{len(missing)} missing ({', '.join(missing[:3])}), expected the tensors of {document.class_name}."
    )
    if strict:
        raise CheckpointError(f"{result} To load what fits, pass strict=False.")
    logger.warning("%s What fits is loaded.", result)
    return False
