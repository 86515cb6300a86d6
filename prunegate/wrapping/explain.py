"""A report on which channels of a model can be pruned and which cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prunegate.compaction import Limit
from prunegate.costs import CostModel
from prunegate.groups import Analysis, ChannelGroup
from prunegate.wrapping.reach import Reach


@dataclass(frozen=True)
class GroupRow:
    """One channel group in numbers.

    Attributes:
        channels_per_unit: How many channels of the producing module are removed with each unit.
        macs_share: Share of the dense MACs that is removed if only one unit of this group is kept, in [0, 1].
        members: Tensor axes, e.g. ``"layer1.0.conv1.weight[0]"``.
    """

    name: str
    num_units: int
    channels_per_unit: int
    macs_share: float
    params_share: float
    members: tuple[str, ...]


@dataclass(frozen=True)
class PinnedRow:
    """One pinned channel group.

    Attributes:
        reason: Where and why, with the line of the user's module if known.
        advice: What a user can do about it.
    """

    name: str
    num_units: int
    reason: str
    advice: str


@dataclass(frozen=True)
class Explanation:
    """What `GatedModel.explain` returns; ``str()`` of it is a readable page.

    Attributes:
        least_macs: Lowest MACs per sample that masks can reach.
        backend: The compaction back-end that the gates were chosen for.
        reach: What can be removed at most, for each back-end that was tried.
        reachable_macs_share: Share of the dense MACs that the gates can remove at most, in [0, 1].
        limits: Conditions outside of which losslessness is not proved.
    """

    groups: tuple[GroupRow, ...]
    pinned: tuple[PinnedRow, ...]
    dense_macs: int
    dense_params: int
    least_macs: int
    backend: str
    reach: Mapping[str, Reach]
    unused: tuple[str, ...]
    limits: tuple[Limit, ...] = ()

    @property
    def reachable_macs_share(self) -> float:
        return self.reach[self.backend].macs_share

    @property
    def reach_line(self) -> str:
        """One sentence with the reach of each back-end that was tried."""
        tried = "; ".join(
            f"{backend}: {reach.macs_share:.1%} of the MACs, {reach.params_share:.1%} of the parameters"
            for backend, reach in self.reach.items()
        )
        return f"Reach by back-end: {tried}; chosen: {self.backend}."

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        lines = [
            f"{len(self.groups)} channel groups, {sum(g.num_units for g in self.groups)} units; dense "
            f"{self.dense_macs:,} MACs per sample, {self.dense_params:,} parameters; the gates reach down to "
            f"{self.least_macs:,} MACs (remove {self.reachable_macs_share:.1%}).",
            *(
                f"  {g.name}: {g.num_units} units{_of_several(g)}, {g.macs_share:.1%} of MACs, "
                f"{len(g.members)} tensor axes"
                for g in self.groups
            ),
        ]
        lines += [self.reach_line]
        if self.pinned:
            reasons = (f"  {p.name}: {p.num_units} channels. {p.reason}. {p.advice}" for p in self.pinned)
            lines += ["not prunable:", *reasons]
        if self.limits:
            lines += ["limits:", *(f"  {limit}" for limit in self.limits)]
        if self.unused:
            lines.append(f"never read while the model ran: {', '.join(self.unused)}")
        return "\n".join(lines)


def _of_several(group: GroupRow) -> str:
    return f" of {group.channels_per_unit} channels each" if group.channels_per_unit > 1 else ""


def explain(
    analysis: Analysis,
    macs: CostModel,
    params: CostModel,
    least_macs: int,
    backend: str,
    reach: Mapping[str, Reach],
    limits: tuple[Limit, ...] = (),
) -> Explanation:
    """Collect the report of one analysis."""
    dense_macs, dense_params = macs.dense(), params.dense()
    return Explanation(
        groups=tuple(
            GroupRow(
                group.name,
                group.num_units,
                group.channels_per_unit,
                _share(macs, group, dense_macs),
                _share(params, group, dense_params),
                tuple(f"{m.tensor}[{m.axis}]" for m in group.members),
            )
            for group in analysis.groups
        ),
        pinned=tuple(PinnedRow(p.name, p.num_units, p.reason, p.advice) for p in analysis.pinned),
        dense_macs=dense_macs,
        dense_params=dense_params,
        least_macs=least_macs,
        backend=backend,
        reach=dict(reach),
        unused=analysis.unused,
        limits=limits,
    )


def _share(cost: CostModel, group: ChannelGroup, dense: int) -> float:
    keep = np.ones(cost.num_units, dtype=bool)
    keep[group.first_unit + 1 : group.units.stop] = False
    return 1.0 - cost.exact(keep) / dense if dense else 0.0
