"""A hash of a model's structure: everything that determines its computation except the values of its tensors."""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterator, Mapping
from importlib import import_module
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import fx, nn

from prunegate.builders import Builder
from prunegate.checkpoint import pretrained
from prunegate.checkpoint.strict_json import digest
from prunegate.compaction import made_with
from prunegate.version import __version__

# Attributes that do not count: only inference matters, and descriptions for users do not.
_OTHERS = frozenset(
    {"training", "grad_checkpointing", "pretrained_cfg", "default_cfg", "meta"}
    | {"_is_accelerate_prepared", "_is_hf_initialized"}  # marks that training libraries leave
    | {pretrained.NAME}  # replaced on compact models
)
_DEEPEST = 4
_NAMED = (type, FunctionType, BuiltinFunctionType, MethodType)


def structure_of(model: nn.Module) -> str:
    """SHA-256 of the modules with their classes, plain attributes and forwards, and of the tensors' shapes.

    The class of the model itself is not included, as a user may pass a subclass. Values, types and devices of tensors
    do not count. Another version of a library may give its modules other attributes; two models of one hash compute the
    same, while two of different hashes may or may not.
    """
    own = frozenset(vars(nn.Module())) | _OTHERS
    modules = [
        [path, type(module).__name__ if path else "", _attributes(module, own), made_with(module)]
        for path, module in model.named_modules(remove_duplicate=False)
    ]
    if isinstance(model, fx.GraphModule):
        modules[0][2:] = [{}, model.code]
    tensors = [[name, list(tensor.shape)] for name, tensor in _tensors(model)]
    return digest([sorted(modules, key=lambda module: str(module[0])), sorted(tensors)])


def versions(builder: Builder | None) -> dict[str, str]:
    """Versions that a structure depends on: of torch, prunegate and the library that builds the model."""
    libraries = ["torch", *({builder.library} - {"prunegate"} if builder is not None else ())]
    # The part after a plus describes the build.
    results = {library: str(import_module(library).__version__).partition("+")[0] for library in libraries}
    return {**results, "prunegate": __version__}


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _attributes(module: nn.Module, others: frozenset[str]) -> dict[str, Any]:
    return {
        name: _plain(value, _DEEPEST)
        for name, value in vars(module).items()
        if name not in others and not name.startswith("_prunegate")
    }


def _plain(value: Any, depth: int) -> Any:
    """A JSON-ready form of a value that is the same in every process."""
    if value is None or (isinstance(value, (bool, int, str)) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, _NAMED):
        return value.__qualname__
    if isinstance(value, functools.partial) and depth:
        return ["partial", *(_plain(part, depth - 1) for part in (value.func, value.args, value.keywords))]
    if isinstance(value, (tuple, list)) and depth:
        return [_plain(entry, depth - 1) for entry in value]
    if isinstance(value, Mapping) and depth:
        return {str(key): _plain(entry, depth - 1) for key, entry in value.items()}
    if isinstance(value, torch.Tensor):
        return ["tensor", list(value.shape)]
    if isinstance(value, (enum.Enum, torch.dtype, torch.memory_format)):
        return str(value)
    return ["object", type(value).__name__]
