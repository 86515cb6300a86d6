"""Files in their parts, and changes to them with hashes that are right again."""

from __future__ import annotations

import copy
import hashlib
import json
import struct
from collections.abc import Iterator
from typing import Any

import safetensors.torch
import torch
from hypothesis import strategies as st

from tests.checkpoint.models import resealed


def parts(raw: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Header, document and data of a file."""
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["prunegate"]), raw[8 + length :]


def joined(header: dict[str, Any], document: Any, data: bytes) -> bytes:
    """A file of these parts, whose document has the hash that it should have."""
    header = {**header, "__metadata__": {"prunegate": json.dumps(resealed(document))}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every entry of nested containers."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield (*path, key)
        yield from places(value, (*path, key))


def with_other_tensors(raw: bytes, data: st.DataObject) -> bytes:
    """A file whose hash is right and one tensor wrong."""
    _, document, _ = parts(raw)
    tensors = dict(safetensors.torch.load(raw))
    name = data.draw(st.sampled_from(sorted(tensors)))
    tensor = tensors.pop(name)
    what = data.draw(st.sampled_from(("gone", "renamed", "another type", "another form", "longer", "more")))
    if what == "renamed":
        tensors[data.draw(st.sampled_from(("..", "", "x.weight", "fc", "__class__")))] = tensor
    elif what == "another type":
        types = (torch.int64, torch.bool, torch.uint8, torch.int32)
        tensors[name] = tensor.to(data.draw(st.sampled_from([t for t in types if t != tensor.dtype])))
    elif what == "another form":
        tensors[name] = tensor[None].clone()
    elif what == "longer":
        tensors[name] = torch.cat([tensor.reshape(-1), tensor.reshape(-1)])
    elif what == "more":
        tensors |= {name: tensor, f"{name}.more": tensor.clone()}
    return rehashed(safetensors.torch.save(tensors, {"prunegate": json.dumps(document)}))


def rehashed(raw: bytes) -> bytes:
    """The file with the hash that its tensors have."""
    header, document, data = parts(raw)
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"))
    return joined(header, {**document, "weights_sha256": hashlib.sha256(text.encode() + data).hexdigest()}, data)


HOSTILE: list[Any] = [
    None, True, -1, 0, 1, 3, 1 << 31, 1 << 63, -(1 << 63), 1 << 80, 1e308, float("nan"), float("inf"), "", "..",
    "../../etc/passwd", "/etc/passwd", "http://127.0.0.1:9/x", "hf-hub:someone/something", "os", "os:system",
    "__class__", "__import__('os')", "\0", "é" * 300, [], {}, [[]], [1] * 1000, {"": {}}, {"..": 1},
    {"__reduce__": "os.system"}, [1 << 24, 1 << 24], {"tensor": [1 << 24] * 8, "dtype": "float32"},
]  # fmt: skip


def changed(raw: bytes, data: st.DataObject) -> bytes:
    """A file with one thing wrong: in its bytes, its header or its document."""
    ways = ("document", "document", "document", "tensors", "header", "bytes", "cut", "grown")
    how = data.draw(st.sampled_from(ways))
    if how == "tensors":
        return with_other_tensors(raw, data)
    if how == "bytes":
        damaged = bytearray(raw)
        length = struct.unpack("<Q", raw[:8])[0]
        # Mostly in the header, where it matters how.
        end = data.draw(st.sampled_from((8, 8 + length, len(raw))))
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, end - 1))] ^= 1 << data.draw(st.integers(0, 7))
        return bytes(damaged)
    if how == "cut":
        return raw[: data.draw(st.integers(0, len(raw) - 1))]
    if how == "grown":
        return raw + b"\0" * data.draw(st.integers(1, 1000))
    header, document, tensors = parts(raw)
    tree: Any = document if how == "document" else {k: v for k, v in header.items() if k != "__metadata__"}
    tree = copy.deepcopy(tree)
    path = data.draw(st.sampled_from(list(places(tree))))
    owner = tree
    for key in path[:-1]:
        owner = owner[key]
    what = data.draw(st.sampled_from(("replace", "replace", "remove", "rename", "copy")))
    value = data.draw(st.sampled_from(HOSTILE))
    if what == "replace":
        owner[path[-1]] = value
    elif what == "remove":
        del owner[path[-1]]
    elif isinstance(owner, list):
        owner.append(value)
    elif what == "rename":
        owner[data.draw(st.sampled_from(("..", "", "weight", "x" * 300, "fc.weight", "__dict__")))] = owner.pop(
            path[-1]
        )
    else:
        owner[data.draw(st.sampled_from(("..", "pretrained", "checkpoint_path", "fc", "")))] = owner[path[-1]]
    return joined(header, tree, tensors) if how == "document" else joined(tree, document, tensors)
