"""Example inputs in the three forms a user may give them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from prunegate.errors import TraceError


@dataclass(frozen=True)
class ExampleInputs:
    """Arguments of one call of the model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, given: Any) -> ExampleInputs:
        """From a tensor, a tuple of positional arguments, or a dict of keyword arguments.

        Raises:
            TraceError: ``given`` is of another type or holds no tensor.
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
                "model, so it needs an input of the shape it will see."
            )
        return inputs

    def tensors(self) -> list[torch.Tensor]:
        return [t for t in tree_leaves((self.args, self.kwargs)) if isinstance(t, torch.Tensor)]

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> ExampleInputs:
        """The same arguments with every tensor changed."""
        args, kwargs = tree_map(lambda x: change(x) if isinstance(x, torch.Tensor) else x, (self.args, self.kwargs))
        return ExampleInputs(args, kwargs)

    def doubled(self) -> ExampleInputs:
        """Every sample twice: BatchNorm refuses to train on a single value for each channel."""
        batch = self.batch_size()
        return self.map(lambda t: torch.cat([t, t]) if t.dim() > 0 and t.shape[0] == batch else t)

    def batch_size(self) -> int:
        """Samples in one call: the leading size of the first tensor with dimensions."""
        return next((int(t.shape[0]) for t in self.tensors() if t.dim() > 0), 1)
