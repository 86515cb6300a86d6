"""The result of tracing a model: channel groups, gate sites and the cost of every operation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prunegate.groups.channel_group import ChannelGroup, PinnedGroup
from prunegate.groups.following.code_places import CodePlace
from prunegate.groups.solving.labels import Shape
from prunegate.groups.solving.partition import Ids


@dataclass(frozen=True)
class LoopNest:
    """One product of sizes: ``constant`` times the number of kept positions of each axis.

    Attributes:
        constant: Product of the sizes that do not depend on units.
        axes: For every other loop, an int64 array over its positions with the unit of each, -1 for none.
    """

    module: str
    constant: int
    axes: tuple[Ids, ...]


@dataclass(frozen=True)
class MaskedCall:
    """Function calls of a module in which the same removed units have to be masked in one tensor argument.

    Attributes:
        place: Index of the argument.
        units: The unit of each position, -1 for none; broadcasts over the argument.
        indices: Indices of these calls among the module's calls of the function in the traced runs.
        codes: Their positions in the code, if all calls there are masked; they are then identified by position,
            whatever their number.
        is_every: All of the module's calls of the function are masked.
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
    """Channel groups of one model. Units are numbered across all groups, in the order of ``groups``.

    Attributes:
        groups: The channel groups that can get a gate.
        pinned: The others, with reasons.
        axes: For each parameter and buffer, the axes that hold units, each as int64 (length,), -1 for none.
        sites: The same for the axes at which a weight reads units, where masks are applied.
        shapes: Shape of every parameter and buffer.
        multiply_accumulates: Loop nests of all contractions, for the whole traced batch.
        parameters: Loop nests that give each parameter's element count.
        batch_size: Samples in the traced inputs.
        unused: Parameters that the run never read.
        masked_calls: Function calls to which masks are applied.
        units_of: The unit of each id in labels, -1 for none.
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
