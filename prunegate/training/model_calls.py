"""Turning a loader's batch into a call of the model: inputs alone, (inputs, labels) and dicts."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from prunegate.errors import LoopError
from prunegate.wrapping import GatedModel


@dataclass(frozen=True)
class ModelCall:
    """The arguments of one call, on the model's device."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, torch.Tensor)]

    def is_finite(self) -> bool:
        """Whether all numbers are finite; this synchronises with the device."""
        return all(bool(torch.isfinite(t).all()) for t in self.tensors if t.is_floating_point() or t.is_complex())


class ModelCalls:
    """Makes calls of a model from batches.

    A gated model knows the inputs that it was wrapped with, and batches are read in the same form: of a tuple, as many
    parts as the model got at `wrap`; of a dict, the arguments of ``forward`` by name. For a plain model, the signature
    of ``forward`` says how many inputs there are.

    Args:
        model: A gated model, or any other.
    """

    def __init__(self, model: nn.Module) -> None:
        inner = model.model if isinstance(model, GatedModel) else model
        example = model.example_inputs if isinstance(model, GatedModel) else None
        self._model = model
        self._device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        parameters = list(inspect.signature(inner.forward).parameters.values())
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        self._names = [p.name for p in parameters if p.kind in by_name]
        needed = [p for p in parameters if p.default is p.empty and p.kind in (by_name[0], p.POSITIONAL_ONLY)]
        # One entry per argument: its name, or None if it is positional, and its value at `wrap`, if known.
        self._expected: list[tuple[str | None, Any]] = [(None, None)] * max(1, len(needed))
        if example is not None:
            self._names += [name for name in example.kwargs if name not in self._names]
            self._expected = [(None, value) for value in example.args] + list(example.kwargs.items())

    def of(self, batch: Any) -> ModelCall:
        """The call for a batch, without labels and other extras.

        Raises:
            LoopError: The batch has none of these forms.
        """
        values = self._arguments(batch)
        if values is None:
            raise LoopError(
                f"batches: found a batch that is {described(batch)}, expected {self._wanted()}. Pass the model's "
                "inputs, (inputs, labels), or a dict with the argument names of the model's forward."
            )
        moved = tree_map(lambda leaf: leaf.to(self._device) if isinstance(leaf, torch.Tensor) else leaf, values)
        return ModelCall(*moved)

    def run(self, call: ModelCall, number: int) -> None:
        """Call the model, and name the batch if the model fails on it.

        Raises:
            LoopError: The model fails; its own error is the cause.
        """
        try:
            self._model(*call.args, **call.kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            result = described([*call.args, *call.kwargs.values()])
            raise LoopError(
                f"batches: batch {number}: the model raised {type(error).__name__}: {error}. It was called with "
                f"{result}, expected {self._wanted()}. Pass whole batches in the form that the model was trained on."
            ) from error

    def _arguments(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if len(self._expected) == 1 and _are_alike(self._expected[0][1], batch):
            return self._placed([batch])
        if isinstance(batch, Mapping):
            return self._named(batch)
        if isinstance(batch, torch.Tensor):  # the other arguments may have defaults
            return self._placed([batch])
        if not isinstance(batch, (tuple, list)) or not batch:
            return None
        count = len(self._expected)
        if len(batch) >= count and all(_are_alike(e, v) for (_, e), v in zip(self._expected, batch, strict=False)):
            return self._placed(list(batch[:count]))
        return self._named(batch[0]) if isinstance(batch[0], Mapping) else None

    def _placed(self, values: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        pairs = [(name, value) for (name, _), value in zip(self._expected, values, strict=False)]
        return tuple(v for name, v in pairs if name is None), {name: v for name, v in pairs if name is not None}

    def _named(self, batch: Mapping[Any, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        taken = {name: batch[name] for name in self._names if name in batch}
        if taken:
            return (), taken
        # The data set has its own names: take the only value with the shape of the model's input.
        if len(self._expected) == 1 and isinstance(self._expected[0][1], torch.Tensor):
            like = [value for value in batch.values() if _are_shaped_alike(self._expected[0][1], value)]
            return self._placed(like) if len(like) == 1 else None
        return None

    def _wanted(self) -> str:
        known = [value for _, value in self._expected if value is not None]
        names = [name for name, _ in self._expected if name is not None]
        under = f" under the names {', '.join(names)}" if names else ""
        if known:
            return f"{described(known)}{under}, as at wrap"
        return f"inputs for forward({', '.join(self._names)})"


def batches_of(given: Any) -> Iterator[Any]:
    """The batches of an iterable; a tensor or a dict is a single batch.

    Raises:
        LoopError: ``given`` is not an iterable of batches.
    """
    if isinstance(given, (torch.Tensor, Mapping)):
        return iter([given])
    if isinstance(given, (str, bytes)) or not (isinstance(given, Iterable) or hasattr(given, "__getitem__")):
        raise LoopError(
            f"batches: found {described(given)}, expected an iterable of batches, such as a DataLoader or a list of "
            "tensors. If it is a function, call it and pass the result."
        )
    return iter(given)


def none_found(given: Any) -> LoopError:
    """The error for an empty iterable of batches."""
    return LoopError(
        f"batches: found none in {described(given)}, expected at least one. Nothing was changed. A generator can be "
        "iterated only once: pass a new one, a list, or a DataLoader."
    )


def described(value: Any) -> str:
    """A short description of a batch: its type and shapes."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"{_named_type(value)} with the keys {', '.join(map(str, list(value)[:8])) or 'none'}"
    if isinstance(value, (tuple, list)) and len(value) == 1:
        return described(value[0])
    if isinstance(value, (tuple, list)):
        parts = ", ".join(
            described(part) if isinstance(part, (torch.Tensor, Mapping)) else _named_type(part) for part in value[:8]
        )
        return f"{_named_type(value)} of {parts}" if value else f"an empty {type(value).__name__}"
    return _named_type(value)


def _named_type(value: Any) -> str:
    name = type(value).__name__
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"


def _are_alike(example: Any, value: Any) -> bool:
    """Whether a value is of the same kind as ``example``: both tensors, or both the same kind of container."""
    if example is None:  # nothing is known about a plain model
        return not isinstance(value, (Mapping, tuple, list))
    for kind in (torch.Tensor, Mapping, (tuple, list)):
        if isinstance(example, kind):
            return isinstance(value, kind)
    return not isinstance(value, (torch.Tensor, Mapping, tuple, list))


def _are_shaped_alike(example: torch.Tensor, value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.dim() == example.dim()
        and value.shape[1:] == example.shape[1:]
        and value.is_floating_point() == example.is_floating_point()
    )
