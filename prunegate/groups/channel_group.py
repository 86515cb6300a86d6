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
        of_axis: int64, shape (length of the axis,): the unit at each index, in the order of all units of the
            model; -1 for none.
        of_group: The units of the group within that order.
    """

    tensor: str
    axis: int
    of_axis: Ids
    of_group: range

    def __repr__(self) -> str:
        return f"{self.tensor}[{self.axis}]"

    @property
    def units(self) -> Ids:
        """int64, shape (length of the axis,): the group's unit at each index, -1 where there is none."""
        first, last = self.of_group.start, self.of_group.stop
        return np.where((self.of_axis >= first) & (self.of_axis < last), self.of_axis - first, -1)

    @property
    def module(self) -> str:
        return self.tensor.rpartition(".")[0]


@dataclass(frozen=True)
class ChannelGroup:
    """Tensor axes whose channels live or die together.

    Attributes:
        name: The module that produces the channels.
        num_units: How many units can be removed one by one (at least ``least`` always stay).
        first_unit: Place of the group's units in the model-wide order of all units.
        least: How many units have to stay: one, or as many as a statistic over them needs.
        multiple: Unless all stay, as many as a multiple of this are best, and `GatedModel.harden` keeps such a number:
            a kernel takes no other widths, and has to be given copies of the weights with zeros beside them.
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
        """What kept counts are multiples of where a caller asks for multiples of ``round_to``."""
        return math.lcm(round_to, self.multiple)

    @property
    def channels_per_unit(self) -> int:
        """How many channels of the module that produces them a unit holds: one, or those that must go together.

        A head of a fused qkv layer is three times its width; a place within heads three times their number.
        """
        own = (m for m in self.members if m.module == self.name.partition("#")[0])
        return int((next(own, self.members[0]).units >= 0).sum()) // self.num_units

    @property
    def units(self) -> slice:
        """Where this group's units lie in a flat vector over all units of the model."""
        return slice(self.first_unit, self.first_unit + self.num_units)


@dataclass(frozen=True)
class PinnedGroup:
    """Channels that are not offered a gate, and why."""

    name: str
    num_units: int
    pin: Pin
    tensors: tuple[str, ...]

    @property
    def reason(self) -> str:
        """Where and why, with the line of the user's module where it is known."""
        return str(self.pin)

    @property
    def advice(self) -> str:
        """What a user can do about it."""
        return self.pin.advice
