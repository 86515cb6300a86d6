"""Information about each tensor of a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch

from prunegate.groups.solving.constraints import Constraints, Pin
from prunegate.groups.solving.labels import Labels, on_axis
from prunegate.groups.solving.partition import Ids


@dataclass
class Values:
    """Labels and origins of tensors, by identity. Tensors are kept alive, so that identities are unique.

    An *origin* is the name of the parameter or buffer of which a tensor is a rearranged view: only such tensors can be
    masked through the parameter.
    """

    constraints: Constraints
    _labels: dict[int, Labels] = field(default_factory=dict)
    _origin: dict[int, str] = field(default_factory=dict)
    _alive: list[torch.Tensor] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    _parameters: set[str] = field(default_factory=set)
    _zeroed: set[int] = field(default_factory=set)
    _to_be_zeroed: set[int] = field(default_factory=set)
    _not_to_be_used: dict[int, list[tuple[Ids, Pin]]] = field(default_factory=dict)

    def add_leaf(self, tensor: torch.Tensor, kind: Literal["parameter", "buffer"], name: str) -> None:
        """Assign new ids to every dimension of a parameter or buffer."""
        if kind == "parameter":
            self._parameters.add(name)
        shape = tuple(tensor.shape)
        labels = tuple(
            [
                on_axis(self.constraints.new_axis(kind, name, d, size, len(shape)), d, len(shape))
                for d, size in enumerate(shape)
                if size > 1
            ]
        )
        self.set(tensor, labels, name)

    def set(self, tensor: torch.Tensor, labels: Labels, origin: str | None = None) -> None:
        key = id(tensor)
        if key not in self._labels:
            self._alive.append(tensor)
        if tensor.numel() == 0:  # an operation may have removed all entries
            labels = tuple([label for label in labels if label.size])
        self._labels[key] = labels
        for label in labels:
            if label.ndim > 1 and label.size != max(label.shape):
                self.constraints.require_rectangular(label)
        self._zeroed.discard(key)  # an in-place operation may have written to it
        if key in self._to_be_zeroed:
            self._to_be_zeroed.discard(key)
            self._zeroed.add(key)
        if origin is None:
            self._origin.pop(key, None)
        else:
            self._origin[key] = origin

    def labels(self, tensor: torch.Tensor) -> Labels:
        result = self._labels.get(id(tensor))
        if result is None:  # a literal: every dimension may take on the channels that it is combined with
            result = tuple(
                on_axis(self.constraints.new_axis("constant", "literal", d, size), d, tensor.dim())
                for d, size in enumerate(tensor.shape)
                if size > 1
            )
            self.set(tensor, result)
        return result

    def forbid_use(self, tensor: torch.Tensor, ids: Ids, pin: Pin) -> None:
        """Pin ids if the run reads a tensor, whose values are only valid while all of them are kept."""
        self._not_to_be_used.setdefault(id(tensor), []).append((ids, pin))

    def use(self, tensors: Iterable[torch.Tensor]) -> None:
        """Record that the run read these tensors, and the parameters and buffers of which they are views."""
        if self._not_to_be_used:
            for tensor in tensors:
                for ids, pin in self._not_to_be_used.get(id(tensor), ()):
                    self.constraints.pin(ids, pin)
        origin = self._origin
        self.used.update([origin[id(tensor)] for tensor in tensors if id(tensor) in origin])

    def set_zeroed(self, output: torch.Tensor) -> None:
        """Record that an operation's output is zero wherever its units are removed; call it before labels are set."""
        self._to_be_zeroed.add(id(output))

    def is_zeroed(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is known to be zero wherever its units are removed, so that sums no longer read them."""
        return id(tensor) in self._zeroed

    def origin(self, tensor: torch.Tensor) -> str | None:
        return self._origin.get(id(tensor))

    def parameter(self, tensor: torch.Tensor) -> str | None:
        """The name of the parameter of which a tensor is a view."""
        name = self.origin(tensor)
        return name if name in self._parameters else None
