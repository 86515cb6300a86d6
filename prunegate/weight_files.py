"""Trained weights from common files: safetensors, and state_dicts written by `torch.save`."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from prunegate.errors import PrunegateError, RecipeError, first_line

# Largest nesting depth of weights in a checkpoint, as trainers store them beside their own state.
_DEPTH = 3
# Names of averaged weights that trainers store beside the last ones.
_AVERAGED = re.compile(r"(?:^|[^a-z])(?:ema|swa|averag)|(?:ema|swa)(?:$|[^a-z])", re.IGNORECASE)
# Prefixes that wrappers such as torch.compile add to names.
_WRAPPERS = re.compile(r"(^|\.)(_orig_mod\.|_fsdp_wrapped_module\.)+")
# Counters that may be missing in old files, and do not matter in eval mode.
_MAY_LACK = "num_batches_tracked"

State = Mapping[str, Any]


@dataclass(frozen=True)
class Misfit:
    """The differences between a file's weights and a model's."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.reshaped)

    def __str__(self) -> str:
        parts = []
        for names, words in ((self.missing, "it lacks {}"), (self.unexpected, "the model has no {}")):
            if names:
                parts.append(words.format(_listed(names)))
        if self.reshaped:
            parts.append(f"of another shape: {_listed(self.reshaped, '; ')}")
        return "; ".join(parts)


def load_weights(
    model: nn.Module, path: str | Path, where: str = "model.weights", kind: type[PrunegateError] = RecipeError
) -> None:
    """Load a file's weights into ``model``, all of them or none.

    Args:
        where: Begins the messages.
        kind: Of the errors.

    Raises:
        PrunegateError: Of ``kind``; the file cannot be read, or does not fit.
    """
    model.load_state_dict(fitting_weights(model, path, where, kind), strict=False)


def fitting_weights(
    model: nn.Module, path: str | Path, where: str = "model.weights", kind: type[PrunegateError] = RecipeError
) -> dict[str, Any]:
    """A file's weights under the model's names; the model is not modified, and may be without data.

    The file and its nested dicts (``state_dict``, ``model``, ``model_ema``, ...) are searched, and all names may have a
    common prefix, such as ``module.`` or ``model.``. Averaged weights are preferred if a trainer, such as timm's, has
    stored them beside the last ones.

    Raises:
        PrunegateError: Of ``kind``; the file cannot be read, holds no weights, or does not fit.
    """
    expected = model.state_dict()
    best: tuple[int, Misfit] | None = None
    held = _read(Path(path), where, kind)
    actual = [_renamed(state, expected) for _, state in sorted(_states(held), key=lambda entry: entry[0])]
    if not actual:
        raise kind(
            f"{where}: {path}: found no weights in it, expected a state_dict, as torch.save(model.state_dict(), path) "
            "writes it, or safetensors."
        )
    for state in actual:
        misfit = _misfit(state, expected)
        if not misfit.count:
            return {name: value for name, value in state.items() if name in expected}
        if best is None or misfit.count < best[0]:
            best = misfit.count, misfit
    assert best is not None
    raise kind(
        f"{where}: {path}: does not fit the dense model: {best[1]}. Build the model with the arguments that it was "
        "trained with (num_classes, in_chans), or name the file of another model's weights."
    )


def _read(path: Path, where: str, kind: type[PrunegateError]) -> Any:
    if not path.is_file():
        raise kind(f"{where}: found no file '{path}', expected a safetensors file, or a state_dict in a .pth or .pt.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_plain_types()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise kind(
            f"{where}: {path}: holds more than weights, expected only tensors and plain values. Code in a file is "
            "never run. If you trust the file, save only the weights: torch.save(model.state_dict(), "
            f"path). torch says: {_first_line(error)}"
        ) from error
    except Exception as error:  # a damaged file may raise anything
        raise kind(
            f"{where}: {path}: cannot be read: {_first_line(error)}. Expected a safetensors file, or a state_dict in "
            "a .pth or .pt. Copy or save it again."
        ) from error


def _plain_types() -> list[Any]:
    """Types that trainers, such as timm's, store beside weights, and whose construction runs no code."""
    scalar = np.float64(0.0).__reduce__()[0]
    return [argparse.Namespace, scalar, np.dtype, *{type(np.dtype(name)) for name in ("f4", "f8", "i4", "i8", "?")}]


def _first_line(error: BaseException) -> str:
    return first_line(error).rstrip(".") or type(error).__name__


def _states(held: Any, depth: int = 0, averaged: bool = False) -> Iterator[tuple[tuple[bool, int], State]]:
    """Every dict of tensors in a checkpoint, with its rank in the order in which they are tried."""
    if not isinstance(held, Mapping) or depth > _DEPTH:
        return
    tensors = {name: value for name, value in held.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}
    if tensors:
        yield (not averaged, depth), {_WRAPPERS.sub(r"\1", name): value for name, value in tensors.items()}
    for name, value in held.items():
        is_averaged = averaged or (isinstance(name, str) and bool(_AVERAGED.search(name)))
        yield from _states(value, depth + 1, is_averaged)


def _renamed(state: State, expected: Mapping[str, Any]) -> State:
    """The weights without the common prefix of their names; of several models in one, the best match."""
    if not expected:
        return state
    rarest = max(expected, key=len)
    prefixes = {"", *(name[: -len(rarest)] for name in state if name.endswith("." + rarest))}

    def order(prefix: str) -> tuple[int, bool, int]:
        return -sum(prefix + name in state for name in expected), not _AVERAGED.search(prefix), len(prefix)

    prefix = min(prefixes, key=order)
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def _misfit(state: State, expected: Mapping[str, Any]) -> Misfit:
    missing = [name for name in expected if name not in state and not name.endswith(_MAY_LACK)]
    missing = [name for name in missing if isinstance(expected[name], torch.Tensor)]
    reshaped = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if isinstance(value, torch.Tensor) and name in state and state[name].shape != value.shape
    ]
    return Misfit(tuple(missing), tuple(name for name in state if name not in expected), tuple(reshaped))


def _listed(names: tuple[str, ...], between: str = ", ") -> str:
    return between.join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
