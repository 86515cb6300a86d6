"""Channel groups: the result of tracing, as plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from prunegate.groups.solving.constraints import Pin
from prunegate.groups.solving.partition import Ids


class Member(NamedTuple):
    """One tensor axis whose slices belong to the units of a channel group.

    Attributes:
        tensor: Name of the parameter or buffer, e.g. ``"layer1.0.conv1.weight"``.
        axis: Dimension of that tensor.
        of_axis: int64, shape (length of the axis,): the unit at each index, numbered across the model; -1 for none.
        of_group: The group's units in this numbering.
    """

    tensor: str
    axis: int
    of_axis: Ids
    of_group: range

    def __repr__(self) -> str:
        return f"{self.tensor}[{self.axis}]"

    @property
    def units(self) -> Ids:
        """int64, shape (length of the axis,): the group's unit at each index, -1 for none."""
        first, last = self.of_group.start, self.of_group.stop
        return np.where((self.of_axis >= first) & (self.of_axis < last), self.of_axis - first, -1)

    @property
    def module(self) -> str:
        return self.tensor.rpartition(".")[0]


@dataclass(frozen=True)
class ChannelGroup:
    """Tensor axes whose channels are kept or removed together.

    Attributes:
        name: The module that produces the channels.
        num_units: Number of units that can be removed one by one (at least ``least`` are always kept).
        first_unit: Index of the group's first unit in the model-wide numbering.
        least: Fewest units that have to be kept: one, or as many as a statistic over them needs.
        multiple: Unless all units are kept, `GatedModel.harden` keeps a multiple of this, because a kernel only
            supports such widths and otherwise needs zero-padded copies of the weights.
    """

    name: str
    num_units: int
    first_unit: int
    members: tuple[Member, ...]
    least: int = 1
    multiple: int = 1

    def __repr__(self) -> str:
        more = f" and {len(self.members) - 4} more" if len(self.members) > 4 else ""
        members = ", ".join(map(repr, self.members[:4]))
        return f"ChannelGroup({self.name!r}, {self.num_units} units of {members}{more})"

    def step(self, round_to: int) -> int:
        """The step of kept counts if the caller requests multiples of ``round_to``."""
        return math.lcm(round_to, self.multiple)

    @property
    def channels_per_unit(self) -> int:
        """Number of channels of the producing module in a unit: one, or several that have to be removed together.

        For a fused qkv layer, a head has three times its width, and a head dimension three times the number of heads.
        """
        own = (m for m in self.members if m.module == self.name.partition("#")[0])
        return int((next(own, self.members[0]).units >= 0).sum()) // self.num_units

    @property
    def units(self) -> slice:
        """The slice of this group's units in a flat vector over all units of the model."""
        return slice(self.first_unit, self.first_unit + self.num_units)


@dataclass(frozen=True)
class PinnedGroup:
    """Channels that get no gate, and why."""

    name: str
    num_units: int
    pin: Pin
    tensors: tuple[str, ...]

    @property
    def reason(self) -> str:
        """Where and why, with the line of the user's module if known."""
        return str(self.pin)

    @property
    def advice(self) -> str:
        """What a user can do about it."""
        return self.pin.advice
