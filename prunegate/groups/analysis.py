"""What tracing found out about a model: channel groups, gate sites and the cost of every operation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prunegate.groups.channel_group import ChannelGroup, PinnedGroup
from prunegate.groups.following.code_places import CodePlace
from prunegate.groups.solving.labels import Shape
from prunegate.groups.solving.partition import Ids


@dataclass(frozen=True)
class LoopNest:
    """One product of sizes: ``constant`` times, for each axis, the number of its positions that are kept.

    Attributes:
        constant: Product of the sizes that no unit changes.
        axes: For every other loop an int64 array over its positions: the unit each belongs to, -1 for none.
    """

    module: str
    constant: int
    axes: tuple[Ids, ...]


@dataclass(frozen=True)
class MaskedCall:
    """Function calls of a module that must leave the same removed units out of one of their tensor arguments.

    Attributes:
        place: Number of the argument.
        units: Broadcasts over the argument: the unit of each position, -1 for none.
        indices: Which of the module's calls of the function these were in the runs that were followed.
        codes: Where in the code they stand, if all calls there are such; then they are known by that, however many
            there are.
        is_every: All of the module's calls of the function are such.
    """

    module: str
    function: str
    place: int
    units: Ids
    indices: tuple[int, ...]
    codes: tuple[CodePlace, ...] = ()
    is_every: bool = False


@dataclass(frozen=True)
class Analysis:
    """Channel groups of one model. Units are numbered through all groups, in the order of ``groups``.

    Attributes:
        groups: The channel groups that can be offered a gate.
        pinned: The others, with reasons.
        axes: For each parameter and buffer the axes that hold units, each as int64 (length,), -1 for none.
        sites: The same for the axes at which a weight reads units: where masks go.
        shapes: Shape of every parameter and buffer.
        multiply_accumulates: Loop nests of all contractions, for the whole traced batch.
        parameters: Loop nests whose value is each parameter's element count.
        batch_size: Samples in the traced inputs.
        unused: Parameters that the run never read.
        masked_calls: Where masks go besides weights.
        units_of: The unit of each id that labels hold, -1 for none.
    """

    groups: tuple[ChannelGroup, ...]
    pinned: tuple[PinnedGroup, ...]
    axes: Mapping[str, Mapping[int, Ids]]
    sites: Mapping[str, Mapping[int, Ids]]
    shapes: Mapping[str, Shape]
    multiply_accumulates: tuple[LoopNest, ...]
    parameters: tuple[LoopNest, ...]
    batch_size: int
    unused: tuple[str, ...]
    masked_calls: tuple[MaskedCall, ...]
    units_of: Ids

    def __repr__(self) -> str:
        kept = len(self.pinned)
        return f"Analysis({len(self.groups)} channel groups with {self.num_units:,} units, {kept} not prunable)"

    @property
    def num_units(self) -> int:
        return sum(group.num_units for group in self.groups)
