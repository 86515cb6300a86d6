"""The file: an ordinary safetensors file with the document in its metadata."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import secrets
import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from prunegate.checkpoint.document import FORMAT, OWN_HASH, Document
from prunegate.checkpoint.strict_json import canonical, without_doubles
from prunegate.checkpoint.structure import structure_of, versions
from prunegate.errors import CheckpointError, ModelNameError
from prunegate.files import replacing

_KEY = "prunegate"
# Largest header in bytes, with the document and a line per tensor. A thousand layers take about one mebibyte; the
# header may also be as large as the tensors, up to a bound.
_LARGEST_HEADER = 16 * 2**20
_SMALL_HEADER = 4 * 2**20


def save(
    path: str | os.PathLike[str], model: nn.Module, document: Document, as_loaded: nn.Module | None = None
) -> None:
    """Write ``model`` (the compact one) and its document atomically.

    Args:
        as_loaded: The model in the form in which it is loaded from the file, if that is known to differ slightly.

    Raises:
        CheckpointError: The document's ``extra`` is not JSON-ready, or the file cannot be written.
    """
    tensors, aliases = _stored_tensors(model)
    document = replace(
        document,
        aliases=aliases,
        # Placeholder for the hash until the tensors are in the file, as safetensors decides their order.
        weights_sha256=secrets.token_hex(hashlib.sha256().digest_size),
        structure_sha256=structure_of(model if as_loaded is None else as_loaded),
        versions=versions(document.builder),
        version=max(document.version, FORMAT),
    )
    try:
        text = document.as_text()
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}. Nothing was written.") from error
    try:
        with replacing(Path(path)) as temporary:
            save_file(tensors, temporary, metadata={_KEY: text})
            if _surplus(temporary):
                raise CheckpointError(
                    f"{path}: extra: the document has {len(text)} characters, expected no more than fits "
                    "in the header of a file of this size. Keep long records in another file. Nothing was written."
                )
            _put_hashes(temporary, document, text)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot be written ({error}). Any existing file is unchanged. Free disk space, or choose another "
            "place."
        ) from error


def read_document(path: str | os.PathLike[str]) -> Document:
    """The document of a checkpoint, without its weights.

    Raises:
        CheckpointError: The file is damaged, or no prunegate checkpoint.
    """
    path = Path(path)
    with _open(path) as file:
        return _document(path, file.metadata(), len(file.keys()))


def stored_sizes(path: str | os.PathLike[str]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every stored tensor, without its data, e.g. ``("F32", (64, 3, 7, 7))``.

    Raises:
        CheckpointError: The file is damaged.
    """
    with _open(Path(path)) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return {name: (str(s.get_dtype()), tuple(s.get_shape())) for name, s in slices.items()}


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors by name; their hash is not compared here.

    Raises:
        CheckpointError: The file is damaged.
    """
    with _open(path) as file:
        try:
            # Tensors in the file have arbitrary offsets, and the rounding of kernels depends on alignment. Each is
            # copied to memory allocated by torch, so that a loaded model computes bit for bit the same.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: cannot read the tensors ({error}). The file is damaged.") from error


@contextmanager
def hash_compared(path: Path, document: Document) -> Iterator[None]:
    """Compare the file's tensors with their hash while the block runs, as it takes as long as loading them.

    Raises:
        CheckpointError: They do not match; this takes precedence over errors in the block.
    """
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(_hash, path)
        try:
            yield
        finally:
            try:
                matches = result.result() == document.weights_sha256
            except ValueError as error:
                raise CheckpointError(f"{path}: header: {error}. The file is damaged.") from error
            if not matches:
                raise CheckpointError(
                    f"{path}: weights_sha256: does not match the tensors. The file is damaged or changed."
                )


def _open(path: Path) -> Any:
    try:
        if surplus := _surplus(path):
            raise CheckpointError(
                f"{path}: header: found {surplus[0]} bytes, expected at most {surplus[1]}. The file is damaged, "
                "or made to exhaust memory."
            )
        return safe_open(str(path), framework="pt")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file, expected a checkpoint saved by prunegate.") from error
    except IsADirectoryError as error:
        raise CheckpointError(f"{path}: is a folder, expected a checkpoint saved by prunegate.") from error
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as a safetensors file ({error}). It is truncated or of another kind. "
            "Copy or save it again."
        ) from error


def _surplus(path: Path) -> tuple[int, int] | None:
    """The size of a header that is too large, and the limit for this file; otherwise None."""
    with path.open("rb") as file:
        start = file.read(8)
        size = file.seek(0, os.SEEK_END)
    header = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    most = min(_LARGEST_HEADER, _SMALL_HEADER + max(size - header, 0))
    return (header, most) if most < header < size else None


def _document(path: Path, metadata: Mapping[str, str] | None, num_tensors: int) -> Document:
    text = (metadata or {}).get(_KEY)
    if text is None:
        raise CheckpointError(
            f"{path}: has no {_KEY!r} metadata, expected a checkpoint saved by prunegate. "
            "Plain weights contain no plan for the compact model."
        )
    try:
        return Document.from_text(text, num_tensors)
    except (ValueError, ModelNameError) as error:
        raise CheckpointError(f"{path}: {error}. The file is damaged or was not made by prunegate.") from error


def _stored_tensors(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All parameters and buffers (also those that `state_dict` leaves out), with shared ones once."""
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
            # A copy, as safetensors refuses tensors with shared or strided storage.
            tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors, aliases


def _hash(path: Path) -> str:
    """Hash of a file's tensors: their names, types and shapes, and everything after the header.

    Raises:
        ValueError: The header is not JSON, or names a tensor twice.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        start = 8 + struct.unpack("<Q", mapped[:8])[0]
        header = json.loads(mapped[8:start], object_pairs_hook=without_doubles)
        header.pop("__metadata__", None)
        digest = hashlib.sha256(canonical(header).encode())
        with memoryview(mapped) as view, view[start:] as data:
            digest.update(data)  # in one call, so that other threads can run meanwhile
    return digest.hexdigest()


def _put_hashes(path: Path, document: Document, text: str) -> None:
    """Write the hash of a file's tensors, and then that of its document, over their placeholders."""
    final = replace(document, weights_sha256=_hash(path))
    places = [(document.weights_sha256, final.weights_sha256), (_own_hash(text), _own_hash(final.as_text()))]
    with path.open("r+b") as file:
        header = file.read(8 + struct.unpack("<Q", file.read(8))[0])
        for old, new in places:
            file.seek(8 + header.index(old.encode()))
            file.write(new.encode())


def _own_hash(text: str) -> str:
    return str(json.loads(text)[OWN_HASH])
