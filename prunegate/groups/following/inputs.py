"""Example inputs in the three forms that users may pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from prunegate.errors import TraceError


@dataclass(frozen=True)
class ExampleInputs:
    """Arguments of one call of the model, and which of its outputs count.

    Attributes:
        outputs: Places of tensors in the returned object, such as ``".logits"`` (see
            `prunegate.groups.following.outputs.named_tensors`); None for all of them.
        others: Further calls of the model: other arguments, sizes or branches.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[str, ...] | None = None
    others: tuple[ExampleInputs, ...] = ()

    @classmethod
    def of(cls, given: Any) -> ExampleInputs:
        """From a tensor, a tuple of positional arguments, or a dict of keyword arguments.

        Raises:
            TraceError: ``given`` has another type or contains no tensor.
        """
        if isinstance(given, ExampleInputs):
            return given
        if isinstance(given, torch.Tensor):
            inputs = cls((given,), {})
        elif isinstance(given, tuple):
            inputs = cls(given, {})
        elif isinstance(given, dict) and all(isinstance(key, str) for key in given):
            inputs = cls((), dict(given))
        else:
            raise TraceError(
                f"example_inputs: found {type(given).__name__}, expected a tensor, a tuple of arguments or a "
                "dict of keyword arguments. Wrap a model that takes one list as (list,)."
            )
        if not inputs.tensors():
            raise TraceError(
                "example_inputs: found no tensor, expected at least one. Channels are found by running the "
                "model, which needs inputs of realistic shapes."
            )
        return inputs

    def tensors(self) -> list[torch.Tensor]:
        return [t for t in tree_leaves((self.args, self.kwargs)) if isinstance(t, torch.Tensor)]

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> ExampleInputs:
        """The same arguments with every tensor changed, also in the other calls."""
        args, kwargs = tree_map(lambda x: change(x) if isinstance(x, torch.Tensor) else x, (self.args, self.kwargs))
        return ExampleInputs(args, kwargs, self.outputs, tuple(other.map(change) for other in self.others))

    def alone(self) -> ExampleInputs:
        """Without the other calls."""
        return replace(self, others=())

    def that_count(self, outputs: tuple[str, ...]) -> ExampleInputs:
        """The same calls, with the places of the outputs that count."""
        return replace(self, outputs=outputs, others=tuple(other.that_count(outputs) for other in self.others))

    def copied(self) -> ExampleInputs:
        """The same with copied tensors, as a model's code may write into its inputs."""
        return self.map(lambda tensor: tensor.detach().clone())

    def describe(self) -> Any:
        """The form of the inputs as JSON-ready data; `of_form` makes inputs of that form.

        Raises:
            TraceError: They contain something other than tensors, plain values and containers of them.
        """
        form: list[Any] = [list(self.args), self.kwargs]
        if self.outputs is not None or self.others:
            form.append(None if self.outputs is None else list(self.outputs))
        if self.others:
            form.append([[list(other.args), other.kwargs] for other in self.others])
        return _described(form)

    @classmethod
    def of_form(cls, form: Any) -> ExampleInputs:
        """Inputs on the meta device with a form from `describe`, which is not trusted.

        Raises:
            ValueError: The form is invalid.
        """
        try:
            if _leaves_within(form) > _MOST_ARGUMENTS:
                raise ValueError(f"inputs: found more than {_MOST_ARGUMENTS} tensors and values in all")
            made = _made(form)
        except RecursionError as error:
            raise ValueError("inputs: nested too deeply") from error
        if not isinstance(made, list) or not 2 <= len(made) <= 4:
            raise ValueError("inputs: expected a list of arguments and an object of keyword arguments")
        outputs = _names_of(made[2]) if len(made) > 2 else None
        others = made[3] if len(made) > 3 else []
        if not isinstance(others, list) or len(others) > _MOST_CALLS:
            raise ValueError(f"inputs: expected a list of at most {_MOST_CALLS} other calls")
        calls = [cls(*_call(one), outputs) for one in (made[:2], *others)]
        return replace(calls[0], others=tuple(calls[1:]))

    def doubled(self) -> ExampleInputs:
        """Every sample twice, as BatchNorm cannot train on a single value per channel."""
        batch = self.batch_size()
        return self.map(lambda t: torch.cat([t, t]) if t.dim() > 0 and t.shape[0] == batch else t)

    def of_samples(self, count: int) -> ExampleInputs:
        """Only the first samples, at most ``count``."""
        batch = self.batch_size()
        return self.map(lambda t: t[:count] if t.dim() > 0 and t.shape[0] == batch else t)

    def batch_size(self) -> int:
        """Samples in one call: the leading size of the first tensor with dimensions."""
        return next((int(t.shape[0]) for t in self.tensors() if t.dim() > 0), 1)


_DTYPES = {str(d).removeprefix("torch."): d for d in (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool)}  # fmt: skip


# A batch of a thousand large images; larger forms are damaged or hostile.
_MOST_ENTRIES = 1 << 30

# Enough for a call of a few hundred tensors, each with its sizes and type.
_MOST_ARGUMENTS = 4096

# Each is another run to trace.
_MOST_CALLS = 64


def _call(made: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = made if isinstance(made, list) and len(made) == 2 else (None, None)
    if not (isinstance(args, list) and isinstance(kwargs, dict)):
        raise ValueError("inputs: expected a list of arguments and an object of keyword arguments")
    return tuple(args), kwargs


def _names_of(made: Any) -> tuple[str, ...] | None:
    if made is None:
        return None
    if not isinstance(made, list) or not made or not all(isinstance(name, str) for name in made):
        raise ValueError("inputs: expected the names of the outputs that count as a list")
    return tuple(made)


def _leaves_within(form: Any) -> int:
    """The number of plain values in a form, counted before anything is created."""
    if isinstance(form, (dict, list)):
        return sum(_leaves_within(entry) for entry in (form.values() if isinstance(form, dict) else form))
    return 1


def _described(tree: Any) -> Any:
    if isinstance(tree, torch.Tensor):
        return {"tensor": list(tree.shape), "dtype": str(tree.dtype).removeprefix("torch.")}
    if isinstance(tree, (list, tuple)):
        return {"list" if isinstance(tree, list) else "tuple": [_described(entry) for entry in tree]}
    if isinstance(tree, dict) and all(isinstance(key, str) for key in tree):
        return {"dict": {key: _described(value) for key, value in tree.items()}}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return {"value": tree}
    raise TraceError(f"example_inputs: found a {type(tree).__name__}, which cannot be described in a file.")


def _made(form: Any) -> Any:
    if not isinstance(form, dict) or not form:
        raise ValueError("inputs: expected an object for every argument")
    kind, content = next(iter(form.items()))
    if kind == "tensor" and isinstance(content, list) and len(content) <= 8:
        if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= 1 << 24 for n in content):
            raise ValueError(f"inputs: found shape {content!r}, expected sizes")
        if math.prod(content) > _MOST_ENTRIES:
            raise ValueError(f"inputs: found shape {content!r}, expected at most {_MOST_ENTRIES} entries")
        if not isinstance(form.get("dtype"), str) or form["dtype"] not in _DTYPES:
            raise ValueError(f"inputs: found dtype {form.get('dtype')!r}, expected one of {', '.join(_DTYPES)}")
        return torch.empty(content, dtype=_DTYPES[form["dtype"]], device="meta")
    if kind in ("list", "tuple") and isinstance(content, list):
        made = [_made(entry) for entry in content]
        return made if kind == "list" else tuple(made)
    if kind == "dict" and isinstance(content, dict):
        return {key: _made(value) for key, value in content.items()}
    if kind == "value" and (content is None or isinstance(content, (bool, int, float, str))):
        return content
    raise ValueError(f"inputs: found {kind!r}, expected a tensor, list, tuple, dict or value")
