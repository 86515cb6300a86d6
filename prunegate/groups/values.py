"""What is known of each tensor that came up while the model ran."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from prunegate.groups.constraints import Constraints
from prunegate.groups.labels import Labels, on_axis


@dataclass
class Values:
    """Labels and origins of tensors, by identity. Tensors are kept alive, so identities stay unique.

    An *origin* is the name of the parameter or buffer that a tensor is a rearranged view of: only such
    tensors can be masked by masking the parameter.
    """

    constraints: Constraints
    _labels: dict[int, Labels] = field(default_factory=dict)
    _origin: dict[int, str] = field(default_factory=dict)
    _alive: list[torch.Tensor] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    def add_leaf(self, tensor: torch.Tensor, kind: str, name: str, dims: range) -> None:
        """Give every listed dimension of a parameter or buffer its own ids."""
        labels = tuple(
            on_axis(
                self.constraints.new_axis(
                    "parameter" if kind == "parameter" else "buffer", name, d, tensor.shape[d], tensor.dim()
                ),
                d,
                tensor.dim(),
            )
            for d in dims
            if tensor.shape[d] > 1
        )
        self.set(tensor, labels, name)

    def set(self, tensor: torch.Tensor, labels: Labels, origin: str | None = None) -> None:
        if id(tensor) not in self._labels:
            self._alive.append(tensor)
        self._labels[id(tensor)] = labels
        for label in labels:
            self.constraints.require_rectangular(label)
        if origin is None:
            self._origin.pop(id(tensor), None)
        else:
            self._origin[id(tensor)] = origin

    def labels(self, tensor: torch.Tensor) -> Labels:
        found = self._labels.get(id(tensor))
        if found is None:  # a literal of the code: every dimension may follow the channels it meets
            found = tuple(
                on_axis(self.constraints.new_axis("constant", "literal", d, size), d, tensor.dim())
                for d, size in enumerate(tensor.shape)
                if size > 1
            )
            self.set(tensor, found)
        return found

    def use(self, tensors: Iterable[torch.Tensor]) -> None:
        """Note that the run read the parameters and buffers these are views of."""
        self.used.update(self._origin[id(tensor)] for tensor in tensors if id(tensor) in self._origin)

    def origin(self, tensor: torch.Tensor) -> str | None:
        return self._origin.get(id(tensor))
