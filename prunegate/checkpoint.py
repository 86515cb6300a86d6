"""Compact checkpoints: one safetensors file that says how to build the model it holds.

The file is an ordinary safetensors file: the compact model's parameters and buffers by name. A name that
shares its tensor with another is listed under ``aliases`` instead. The metadata entry ``prunegate`` is a
JSON document:

========================  ==============================================================================
field                     meaning
========================  ==============================================================================
``version``               ``"major.minor"`` of this format; a newer minor loads, a newer major is refused
``builder``               ``{"library", "name", "arguments"}`` of the dense model, or null: hand it in
``class``                 qualified name of the model's class, for people; never imported
``plan``                  `Plan.as_dict`: kept units, kept positions of every cut axis, size attributes
``mending``               `Mending.as_dict`: modules that are played back, or null where the code serves
``inputs``                form of the example inputs, by which these are traced again, or null
``aliases``               for each name that shares a tensor, the name it is stored under
``certificate``           `Certificate.as_dict`: measured differences to the gated model, or null
``costs``                 ``{"macs": {"dense", "compact"}, "params": {...}}``: per sample, exact
``extra``                 whatever the writer added (recipe name, budget, accuracy)
``weights_sha256``        hash over names, dtypes, shapes and bytes of all stored tensors
========================  ==============================================================================

Reading executes nothing from the file: the builder is one of timm's or torchvision's own model names,
the plan is indices and sizes, all of them checked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from prunegate.builders import Builder
from prunegate.compaction import Mending, Plan, rebuild
from prunegate.errors import CheckpointError, CompactionError, ModelNameError
from prunegate.files import replacing
from prunegate.groups import ExampleInputs

FORMAT = (1, 0)
_KEY = "prunegate"
_LARGEST_DOCUMENT = 64 * 2**20  # bytes


@dataclass(frozen=True)
class Document:
    """The JSON document of a checkpoint; see the module's docstring for its fields."""

    builder: Builder | None
    class_name: str
    plan: Plan
    aliases: Mapping[str, str] = field(default_factory=dict)
    mending: Mending = field(default_factory=Mending)
    inputs: Any = None
    certificate: Mapping[str, Any] | None = None
    costs: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""


def save(path: str | os.PathLike[str], model: nn.Module, document: Document) -> None:
    """Write ``model`` (the compact one) and its document; the file appears whole or not at all."""
    tensors, aliases = _stored_tensors(model)
    fields = {
        "version": ".".join(map(str, FORMAT)),
        "builder": None if document.builder is None else document.builder.as_dict(),
        "class": document.class_name,
        "plan": document.plan.as_dict(),
        "mending": None if document.mending.is_plain else document.mending.as_dict(),
        "inputs": document.inputs,
        "aliases": aliases,
        "certificate": document.certificate,
        "costs": document.costs,
        "extra": document.extra,
        "weights_sha256": _hash(tensors),
    }
    text = json.dumps(fields, separators=(",", ":"), allow_nan=False)
    with replacing(Path(path)) as temporary:
        save_file(tensors, temporary, metadata={_KEY: text})


def load(path: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """The compact model stored in ``path``, in eval mode.

    Args:
        model: A dense instance of the model's class, for classes that are neither timm's nor torchvision's.
            It is cut in place and given the stored weights.

    Raises:
        CheckpointError: The file is damaged, is no prunegate checkpoint, or does not fit the model.
    """
    path = Path(path)
    document, tensors = _read(path)
    if model is None:
        if document.builder is None:
            raise CheckpointError(
                f"{path}: holds a {document.class_name}, which is neither a timm nor a torchvision model. "
                f"Code is never loaded from a file. Hand in a dense instance: load({str(path)!r}, model=...)."
            )
        return _load_built(path, document, tensors)
    return _fill(path, model, document, tensors).eval()


def read_document(path: str | os.PathLike[str]) -> Document:
    """The document of a checkpoint, without its weights."""
    path = Path(path)
    with _open(path) as file:
        return _document(path, file.metadata())


def without_builder(document: Document) -> Document:
    """The same document for a model that has to be handed in when it is loaded."""
    return dataclasses.replace(document, builder=None)


def _load_built(path: Path, document: Document, tensors: dict[str, torch.Tensor]) -> nn.Module:
    assert document.builder is not None
    try:
        filled = _fill(path, document.builder.skeleton(), document, tensors)
        if any(torch.is_tensor(v) and v.is_meta for module in filled.modules() for v in vars(module).values()):
            # A tensor that the constructor derived from a parameter and keeps elsewhere needs a real one.
            filled = _fill(path, document.builder.build(), document, tensors)
    except ModelNameError as error:
        raise CheckpointError(f"{path}: builder: {error}") from error
    return filled.eval()


def _fill(path: Path, model: nn.Module, document: Document, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """Cut a dense model by the document's plan and give it the stored tensors."""
    try:
        inputs = ExampleInputs((), {}) if document.mending.is_plain else ExampleInputs.of_form(document.inputs)
        model = rebuild(model, document.plan, document.mending, inputs)
    except CompactionError as error:
        raise CheckpointError(f"{path}: plan: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}. The file is damaged or was not made by prunegate.") from error
    everything = dict(tensors)
    for alias, name in document.aliases.items():
        if name not in tensors:
            raise CheckpointError(f"{path}: aliases.{alias}: names {name!r}, which is not stored in the file.")
        everything[alias] = tensors[name]
    present: dict[str, torch.Tensor] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    missing, unexpected = (
        sorted(present.keys() - everything.keys()),
        sorted(everything.keys() - present.keys()),
    )
    if missing or unexpected:
        raise CheckpointError(
            f"{path}: tensors: found {len(unexpected)} that the model does not have ({', '.join(unexpected[:3])}) and "
            f"{len(missing)} missing ({', '.join(missing[:3])}), expected the tensors of {document.class_name}."
        )
    made: dict[int, nn.Parameter] = {}
    for name, old in present.items():
        new = everything[name]
        if new.shape != old.shape:
            raise CheckpointError(
                f"{path}: {name}: found shape {tuple(new.shape)}, expected {tuple(old.shape)} by the file's own plan. "
                "The file is damaged or does not belong to this model."
            )
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        if isinstance(old, nn.Parameter):
            parameter = made.setdefault(id(new), nn.Parameter(new, requires_grad=old.requires_grad))
            module._parameters[attribute] = parameter
        else:
            module._buffers[attribute] = new
    return model


def _open(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="pt")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file, expected a checkpoint saved by prunegate.") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as a safetensors file ({error}). It is truncated or of another kind. "
            "Copy or save it again."
        ) from error


def _read(path: Path) -> tuple[Document, dict[str, torch.Tensor]]:
    with _open(path) as file:
        document = _document(path, file.metadata())
        try:
            # Tensors of the file lie at any offset. Kernels round by how their operands are aligned, so each
            # is copied to memory of torch's own: only then does a loaded model compute bit for bit the same.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: cannot read the tensors ({error}). The file is damaged.") from error
    if _hash(tensors) != document.weights_sha256:
        raise CheckpointError(f"{path}: weights_sha256: does not match the tensors. The file is damaged or changed.")
    return document, tensors


def _document(path: Path, metadata: Mapping[str, str] | None) -> Document:
    text = (metadata or {}).get(_KEY)
    if text is None:
        raise CheckpointError(
            f"{path}: has no {_KEY!r} metadata, expected a checkpoint saved by prunegate. "
            "Plain weights have no plan to build the compact model by."
        )
    if len(text) > _LARGEST_DOCUMENT:
        raise CheckpointError(f"{path}: document: found {len(text)} bytes, expected at most {_LARGEST_DOCUMENT}.")
    try:
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError("document: expected an object")
        _check_version(fields.get("version"))
        builder = fields.get("builder")
        aliases = fields.get("aliases", {})
        if not isinstance(aliases, dict) or not all(isinstance(v, str) for v in aliases.values()):
            raise ValueError("aliases: expected an object of names")
        return Document(
            builder=None if builder is None else Builder.from_dict(builder),
            class_name=str(fields.get("class", "")),
            plan=Plan.from_dict(fields.get("plan")),
            aliases=aliases,
            mending=Mending.from_dict(fields.get("mending")),
            inputs=fields.get("inputs"),
            certificate=fields.get("certificate"),
            costs=fields.get("costs") or {},
            extra=fields.get("extra") or {},
            weights_sha256=str(fields.get("weights_sha256", "")),
        )
    except (ValueError, RecursionError, ModelNameError) as error:
        raise CheckpointError(f"{path}: {error}. The file is damaged or was not made by prunegate.") from error


def _check_version(version: Any) -> None:
    parts = str(version).split(".")
    if len(parts) != 2 or not all(part.isdecimal() and len(part) < 6 for part in parts):
        raise ValueError(f"version: found {version!r}, expected 'major.minor'")
    if int(parts[0]) > FORMAT[0]:
        raise ValueError(f"version: found {version}, expected at most {FORMAT[0]}.x; a newer prunegate wrote it")


def _stored_tensors(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All parameters and buffers (also those that `state_dict` leaves out), each shared one once."""
    first: dict[int, str] = {}
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        if id(tensor) in first:
            aliases[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            # A copy of its own: safetensors refuses tensors whose storage is shared or strided.
            tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors, aliases


def _hash(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
