"""One operation of the model, as a rule sees it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeAlias

import numpy as np
import torch

from prunegate.groups.following.maskable import EACH_BY_ITSELF, MASKABLE, READING, ZERO_NEUTRAL
from prunegate.groups.following.values import Values
from prunegate.groups.following.watch import Watch
from prunegate.groups.solving.choices import ChoiceKind
from prunegate.groups.solving.constraints import Constraints, Contraction, MaskedArgument, Pin
from prunegate.groups.solving.labels import Labels, Shape, along, collapse, on_axis, varying
from prunegate.groups.solving.partition import Ids


@dataclass
class Call:
    """An operation, or a module with its own rule: its arguments by name, labels and constraints.

    Attributes:
        name: The operation's name without namespace, overload and in-place mark, e.g. ``"addmm"``; or the
            name of the module's class.
        func: The operation; None for a module.
        arguments: Every argument of the schema by name, defaults filled in.
        inputs: All tensors among the arguments, in order.
        outputs: All tensors returned, in order.
        shapes: The inputs' shapes before the operation ran, by identity.
        watch: Tracks the module and function that called the operation.
    """

    name: str
    func: torch._ops.OpOverload | None
    arguments: Mapping[str, Any]
    inputs: Sequence[torch.Tensor]
    outputs: Sequence[torch.Tensor]
    shapes: Mapping[int, Shape]
    values: Values
    watch: Watch

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    @property
    def module(self) -> str:
        """Path of the module whose forward called the operation."""
        return self.watch.module

    @property
    def constraints(self) -> Constraints:
        return self.values.constraints

    @property
    def shape(self) -> Shape:
        """The first output's shape."""
        return tuple(self.outputs[0].shape)

    def tensor(self, name: str) -> torch.Tensor:
        value = self.arguments[name]
        if not isinstance(value, torch.Tensor):
            raise KeyError(name)
        return value

    def labels_of(self, tensor: torch.Tensor) -> Labels:
        """Which unit each index of a tensor belongs to: see `prunegate.register_rule`."""
        return self.values.labels(tensor)

    def shape_of(self, tensor: torch.Tensor) -> Shape:
        """The shape of an input before the operation ran."""
        return self.shapes[id(tensor)]

    def dim(self, name: str, ndim: int) -> int:
        """A dimension argument, made non-negative."""
        return int(self.arguments[name]) % max(ndim, 1)

    def reason(self, why: str) -> Pin:
        return Pin(why, self.name, self.module, _user_line())

    def ids(self, tensor: torch.Tensor, dim: int) -> Ids | None:
        """The units along one dimension of a tensor, shape (size,); None if there are none, or they also lie along
        other dimensions."""
        result = along(self.labels_of(tensor), dim % max(1, tensor.dim())) if tensor.dim() else None
        return None if result is None or len(varying(result)) > 1 else result.reshape(-1)

    def lay(self, ids: Ids | None, dim: int, output: int = 0) -> Labels:
        """Labels for an output whose only units are ``ids``, along ``dim``; empty if ``ids`` is None."""
        ndim = self.outputs[output].dim()
        return () if ids is None else (on_axis(ids.reshape(-1), dim % ndim, ndim),)

    def tie(self, left: Ids, right: Ids) -> None:
        """Require that the units of two broadcastable labels are kept or removed together, entry by entry."""
        self.constraints.tie(left, right)

    def produce(self, ids: Ids | None) -> None:
        """Record that the units are produced here; a channel group needs a producer."""
        if ids is not None:
            self.constraints.produced.append(ids.reshape(-1))

    def multiply(self, weight: torch.Tensor, times: int) -> None:
        """Count the MACs of a weight each of whose entries is multiplied ``times`` times in this call."""
        labels = tuple(label.reshape(1, *label.shape) for label in self.labels_of(weight))
        sizes = (times, *self.shape_of(weight))
        self.constraints.contractions.append(Contraction(self.module, self.name, sizes, labels))

    def pin(self, labels: Labels | Ids | None, why: str) -> None:
        """Pin every unit of the labels, if any, with a reason."""
        if labels is None:
            return
        reason = None
        for label in labels if isinstance(labels, tuple) else (labels,):
            reason = reason or self.reason(why)
            self.constraints.pin(label, reason)

    def consume(self, weight: torch.Tensor, ids: Ids) -> bool:
        """Record that ``weight`` reads the units of its own axis ``ids``; False if it is not a parameter.

        Buffers do not count: code may write to them, and writes to a masked buffer would be lost.
        """
        name = self.values.parameter(weight)
        if name is None:
            return False
        self.constraints.consumed.append((name, ids.reshape(-1)))
        return True

    def read(self, weight: torch.Tensor, own: Ids | None, given: Ids | None, why: str) -> None:
        """Let a weight read channels: tie its axis to them, and mask the removed ones.

        Args:
            own: The ids along the weight's axis, None if it has none.
            given: The label of the channels that are read; broadcasts against ``own``.
            why: The reason for pinning one of them if the other is missing.
        """
        if own is None or given is None:
            self.pin_present(why, own, given)
            return
        self.constraints.tie(given, own)
        if not (self.consume(weight, own) or self.mask(own, reads=True) or self.mask(given, reads=True)):
            self.pin(own, "read by a weight that is computed, not stored")

    def pin_present(self, why: str, *labels: Ids | None) -> None:
        """Pin those of the labels that are not None."""
        self.pin(tuple([label for label in labels if label is not None]), why)

    def mask(self, label: Ids, reads: bool = False, repeated: bool = False) -> bool:
        """Request that the running function masks the label's removed units in the argument that has them.

        Args:
            label: Over the dimensions of the argument, or a flat array along one of them.
            reads: The function itself reads the units, like a weight.
            repeated: The flat array is the first of several along other dimensions, which are tied to it.

        Returns:
            False if the running function has no masked form, or none of its arguments has these units.
        """
        address = self.watch.address
        if address is None or address.function not in (READING if reads else MASKABLE):
            return False
        arguments = self.watch.arguments if address.function in ZERO_NEUTRAL else self.watch.arguments[:1]
        results = []
        for place, argument in enumerate(arguments):
            mine = self._same_units(argument, label, repeated) if isinstance(argument, torch.Tensor) else None
            if mine is not None:
                results.append(MaskedArgument(address, place, mine))
                if address.function not in EACH_BY_ITSELF:
                    break
        self.constraints.masked += results
        if reads:
            self.constraints.consumed += [("", one.label.reshape(-1)) for one in results]
        return bool(results)

    def _same_units(self, argument: torch.Tensor, label: Ids, repeated: bool) -> Ids | None:
        """The label itself if it broadcasts over the argument, or the argument's own with the same ids."""
        if label.ndim != 1:
            ndim, fits = argument.dim(), label.ndim == argument.dim()
            if fits and all(label.shape[d] in (1, argument.shape[d]) for d in range(ndim)):
                return label
            return None
        for own in self.labels_of(argument):
            for dim in varying(own) if repeated or len(varying(own)) == 1 else ():
                first = own[tuple(slice(None) if d == dim else slice(1) for d in range(own.ndim))]
                if np.array_equal(first.reshape(-1), label):
                    return first
        return None

    def forbid_use(self, output: torch.Tensor, labels: Iterable[Ids], why: str) -> None:
        """Pin the labels' units if any operation reads an output, or the model returns it."""
        pin = self.reason(why)
        for label in labels:
            self.values.forbid_use(output, label, pin)

    def keep(self, labels: Sequence[Ids]) -> Labels:
        """The labels that an output keeps, narrowed where they no longer vary.

        A tensor with a single unit's channel cannot be distinguished from one without channels, so the unit of a label
        that stops varying is pinned.
        """
        kept: list[Ids] = []
        taken: set[int] = set()
        for label in map(collapse, labels):
            dims = set(varying(label))
            if label.size == 0:  # none of these channels remain after the operation
                continue
            if label.size == 1:
                self.pin(label, "a single channel is picked by its position")
            elif dims & taken:
                self.pin(label, "two kinds of channels are merged into one dimension")
            else:
                kept.append(label)
                taken |= dims
        return tuple(kept)

    def either(
        self,
        kind: ChoiceKind,
        whole: Callable[[], None],
        places: Callable[[], Ids | None],
        by_itself: Callable[[], Any] | None = None,
    ) -> None:
        """Record a choice: the constraints for removing whole heads or groups, or dimensions within all of them.

        The solver chooses the way with the most units in the whole network.

        Args:
            whole: Records the constraints for whole heads or groups.
            places: Records the constraints for dimensions within them. Returns the ids of an attention's head
                dimensions.
            by_itself: The operation's default.
        """
        ways = [(False, whole), (True, places)]
        if by_itself is places:
            ways.reverse()
        self.constraints.either(kind, self.module, *ways)

    def clear_of(self, labels: Iterable[Ids], dims: Iterable[int], why: str) -> Labels:
        """The labels of a tensor whose entries are mixed, or picked by position, along some dimensions.

        A unit that also lies along other dimensions (a channel whose positions are unflattened beside it, a head whose
        width is mixed) is removed as a whole: it is tied along ``dims``. A unit that lies only along ``dims`` is
        pinned.
        """
        kept, mixed = [], set(dims)
        for label in labels:
            inside = [d for d in varying(label) if d in mixed]
            if inside and len(inside) == len(varying(label)):
                self.pin(label, why)
                continue
            for dim in inside:
                label = self.constraints.tie_along(label, dim)
            kept.append(label)
        return self.keep(kept)

    def all_outputs(self, labels: Labels) -> list[Labels]:
        return [labels for _ in self.outputs]


Rule: TypeAlias = Callable[[Call], "list[Labels]"]
RuleTable: TypeAlias = dict[str, Rule]


def table(rule: Rule, names: str) -> RuleTable:
    """The same rule for every name in a space-separated list."""
    return dict.fromkeys(names.split(), rule)


_INTERNAL = ("/torch/", "/prunegate/groups/")


def _user_line() -> str:
    """File and line of the innermost frame outside of torch and prunegate: the user's module."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if not any(part in path for part in _INTERNAL) and not path.startswith("<"):
            short = "/".join(path.rsplit("/", 3)[1:])
            return f"{short}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
