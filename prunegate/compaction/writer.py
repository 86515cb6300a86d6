"""Writing a section of a run as a graph with other sizes.

`Writer` holds the graph that is written, the nodes of the tensors so far, and sizes, which are numbers or,
where they follow the batch, nodes. How each operation is written is in `prunegate.compaction.rewrite`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from prunegate.compaction.cut_sizes import CutSizes
from prunegate.compaction.plan import kept_of
from prunegate.groups import map_values


class CannotReplayError(Exception):
    """Why a section of a run cannot be replayed with other sizes."""


@dataclass
class Writer:
    """Writes one section of a run as a graph.

    Attributes:
        graph: The graph that is written.
        sizes: The run's tensors after the cut.
        nodes: The node of each tensor, by number.
        stored: The module's parameters and buffers, by number.
        clock: A tensor's node, one of its dimensions, its traced size and the size with more samples, from which the
            number of samples is computed.
        clock_dtype: The dtype that tensor had in the run.
        literals: Tensors of the model's code that the graph needs, by the name of their buffer.
        device: The model's device.
        device_argument: The module's argument for the device of new tensors, if it has one.
    """

    graph: fx.Graph
    sizes: CutSizes
    nodes: dict[int, fx.Node]
    stored: dict[int, str]
    clock: tuple[fx.Node, int, int, int] | None = None
    clock_dtype: torch.dtype | None = None
    literals: dict[str, torch.Tensor] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    device_argument: fx.Node | None = None
    _batch_sizes: dict[int, fx.Node] = field(default_factory=dict)

    def node(self, number: int) -> fx.Node:
        """The node of a tensor.

        Raises:
            CannotReplayError: It was made outside of this section.
        """
        if number in self.stored and number not in self.nodes:
            self.nodes[number] = self.graph.create_node("get_attr", self.stored[number])
        elif number not in self.nodes and number in self.sizes.tape.same_as:
            self.nodes[number] = self.node(self.sizes.tape.same_as[number])
        elif number not in self.nodes:
            source = self.sizes.tape.sources.get(number)
            if source is None or source.kind != "literal" or source.tensor is None:
                raise CannotReplayError("it reads a tensor that was made outside of it")
            self.nodes[number] = self.literal(self._cut_literal(number, source.tensor))
        return self.nodes[number]

    def literal(self, tensor: torch.Tensor) -> fx.Node:
        """A node that reads a constant tensor, kept as a buffer that `state_dict` leaves out."""
        name = f"_literal_{len(self.literals)}"
        self.literals[name] = tensor
        return self.graph.create_node("get_attr", name)

    def positions(self, places: npt.NDArray[np.intp]) -> fx.Node:
        """A node that reads positions along an axis, on the model's device."""
        return self.literal(torch.from_numpy(places).to(self.device))

    def _cut_literal(self, number: int, tensor: torch.Tensor) -> torch.Tensor:
        return kept_of(tensor.detach().clone(), dict(enumerate(self.sizes.kept(number))))

    def filled(self, tree: Any, again: Any = None) -> Any:
        """An argument tree with nodes for tensors; whole numbers that follow the batch become nodes too."""
        tree = map_values(tree, lambda value: self.node(value.number))
        return _with_batch(tree, again, self.follow) if again is not None else tree

    def follow(self, dense: int, again: int, size: int | None = None) -> Any:
        """A number that was ``dense`` in the run and ``again`` in the run with more samples.

        Args:
            size: Its value after the cut, if not ``dense``.
        """
        size = dense if size is None else size
        if dense == again:
            return size
        if self.clock is None:
            raise CannotReplayError("a size depends on the batch size, which no input shows")
        node, dim, traced, traced_again = self.clock
        if dense * traced_again != again * traced:
            raise CannotReplayError("a size depends on the batch size, but is not proportional to it")
        common = math.gcd(size, traced)
        times, per = size // common, traced // common
        result = self._batch_sizes.get(size)
        if result is None:
            result = self.graph.call_method("size", (node, dim))
            result = self.graph.call_function(_MULTIPLY, (result, times)) if times != 1 else result
            result = self.graph.call_function(_DIVIDE, (result, per)) if per != 1 else result
            self._batch_sizes[size] = result
        return result

    def shape_of(self, number: int) -> list[Any]:
        """A tensor's shape after the cut, with nodes for sizes that depend on the batch."""
        tape, again = self.sizes.tape, self.sizes.again
        dense = tape.shapes[number]
        more = dense if again is None else again.shapes[number]
        return [self.follow(*three) for three in zip(dense, more, self.sizes.shape(number), strict=True)]

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        return self.graph.call_function(function, args, kwargs)


_MULTIPLY, _DIVIDE = operator.mul, operator.floordiv


def _with_batch(tree: Any, again: Any, follow: Callable[[int, int], Any]) -> Any:
    if isinstance(tree, bool) or isinstance(again, bool):
        return tree
    if isinstance(tree, int) and isinstance(again, int):
        return follow(tree, again)
    if isinstance(tree, dict) and isinstance(again, dict) and tree.keys() == again.keys():
        return {key: _with_batch(value, again[key], follow) for key, value in tree.items()}
    if isinstance(tree, list | tuple) and isinstance(again, list | tuple) and len(tree) == len(again):
        return type(tree)(_with_batch(a, b, follow) for a, b in zip(tree, again, strict=True))
    return tree
