"""Latency as a cost: a sum of measured surfaces, one for each operation whose time depends on kept units.

A surface is the time of one operation over at most two widths, measured on a grid. Between points of the grid the time
is interpolated linearly. Kernels compute whole blocks of channels, so the time of widths between two multiples of
such a block follows a profile of its own, which is also measured: the exact cost uses it, the expected cost does not,
as it needs a slope.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from prunegate.costs.axes import Axes, Ids


@dataclass(frozen=True)
class Profile:
    """The time between two neighbouring multiples of a block, as shares of the time that a whole block adds.

    Attributes:
        block: The number of channels in a block.
        shares: The share at each remainder, from 0 to ``block - 1``; above 1 where a remainder is slower than a whole
            further block.
    """

    block: int
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Surface:
    """Milliseconds of one operation over the widths of its factors.

    Attributes:
        widths: For each factor, increasing widths that were measured.
        milliseconds: The times on the grid, shape (widths of the first factor, widths of the second or 1).
        profiles: For each factor, how the time grows within a block; None if it grows linearly.
    """

    widths: tuple[tuple[int, ...], ...]
    milliseconds: tuple[tuple[float, ...], ...]
    profiles: tuple[Profile | None, ...]


@dataclass(frozen=True)
class TimedCell:
    """The surface of one operation, and the axes whose kept positions are its widths.

    Attributes:
        axes: For each factor, int64: the unit at each position, -1 for none.
    """

    surface: Surface
    axes: tuple[Ids, ...]


class LatencyCost:
    """Milliseconds of one forward pass, with the interface of `prunegate.costs.CostModel`.

    Args:
        cells: The operations whose time depends on units.
        num_units: Length of the keep vectors.
        scale, constant: The total is ``scale · sum of the surfaces + constant`` (milliseconds), from calibration on
            whole models.
        dense_ms: The measured latency with every unit kept. Its widths are whole blocks, so it is often lower than the
            calibration says, which is for any widths.
    """

    def __init__(
        self,
        cells: Sequence[TimedCell],
        num_units: int,
        scale: float = 1.0,
        constant: float = 0.0,
        dense_ms: float | None = None,
    ) -> None:
        self.num_units, self.scale, self.constant, self._dense_ms = num_units, scale, constant, dense_ms
        self.cells = tuple(cells)
        # Equal operations with equal axes are evaluated once.
        times: dict[tuple[int, tuple[bytes, ...]], int] = {}
        counts: list[int] = []
        kept: list[TimedCell] = []
        self._place = np.zeros(len(cells), dtype=np.int64)
        for number, cell in enumerate(cells):
            key = id(cell.surface), tuple(axis.tobytes() for axis in cell.axes)
            if key not in times:
                times[key] = len(kept)
                kept.append(cell)
                counts.append(0)
            counts[times[key]] += 1
            self._place[number] = times[key]
        self._counts = torch.tensor(counts, dtype=torch.float64)
        self._axes(kept)
        self._grids(kept)
        self._moved: dict[tuple[torch.device, torch.dtype], LatencyTensors] = {}

    def _axes(self, cells: Sequence[TimedCell]) -> None:
        axes = Axes()
        rows = [[axes.number(axis) for axis in cell.axes] for cell in cells]
        self._factors = torch.tensor([row + [0] * (2 - len(row)) for row in rows], dtype=torch.long).reshape(-1, 2)
        self._fixed, self._count = torch.from_numpy(axes.fixed).double(), torch.from_numpy(axes.count).double()
        self._owner, self._unit = torch.from_numpy(axes.owner), torch.from_numpy(axes.unit)

    def _grids(self, cells: Sequence[TimedCell]) -> None:
        """All surfaces in one array each, padded to the largest."""
        points = max((len(w) for cell in cells for w in cell.surface.widths), default=1)
        points = max(points, 2)
        longest = max((p.block for cell in cells for p in cell.surface.profiles if p is not None), default=1)
        widths = np.ones((len(cells), 2, points))
        times = np.zeros((len(cells), points, points))
        largest = np.ones((len(cells), 2))
        blocks = np.ones((len(cells), 2), dtype=np.int64)
        shares = np.zeros((len(cells), 2, longest))
        for row, cell in enumerate(cells):
            grid = np.array(cell.surface.milliseconds)
            times[row] = np.pad(grid, [(0, points - size) for size in grid.shape], mode="edge")
            for column in range(2):
                given = cell.surface.widths[column] if column < len(cell.axes) else (1,)
                largest[row, column] = given[-1]
                rest = given[-1] + 1 + np.arange(points - len(given))  # never reached
                widths[row, column] = np.concatenate([given, rest])
                profile = cell.surface.profiles[column] if column < len(cell.axes) else None
                if profile is not None:
                    blocks[row, column] = profile.block
                    shares[row, column, : profile.block] = profile.shares
        self._widths, self._times = torch.from_numpy(widths), torch.from_numpy(times)
        self._largest = torch.from_numpy(largest)
        self._blocks, self._shares = torch.from_numpy(blocks), torch.from_numpy(shares)

    def calibrated(self, scale: float, constant: float, dense_ms: float | None = None) -> LatencyCost:
        """The same surfaces with another scale and constant."""
        return LatencyCost(self.cells, self.num_units, scale, constant, dense_ms)

    def exact(self, keep: npt.NDArray[np.bool_]) -> float:
        """The predicted milliseconds under hard masks, shape (units,); the measured ones if all units are kept."""
        if self._dense_ms is not None and bool(np.all(keep)):
            return self._dense_ms
        return self.scale * self.sum_of_surfaces(keep) + self.constant

    def sum_of_surfaces(self, keep: npt.NDArray[np.bool_]) -> float:
        """The sum of all operations' times under hard masks, before calibration."""
        return float((self._of_each(keep) * self._counts).sum())

    def by_nest(self, keep: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """The milliseconds of every cell under hard masks, shape (cells,)."""
        times: npt.NDArray[np.float64] = self._of_each(keep).numpy()[self._place] * self.scale
        return times

    def dense(self) -> float:
        """The milliseconds with every unit kept."""
        return self.exact(np.ones(self.num_units, dtype=bool))

    def _of_each(self, keep: npt.NDArray[np.bool_]) -> torch.Tensor:
        kept = torch.from_numpy(np.asarray(keep, dtype=np.float64))
        sizes = self._fixed.index_add(0, self._owner, kept[self._unit] * self._count)
        widths = sizes[self._factors]
        remainder = widths.long() % self._blocks
        shares = self._shares.gather(2, remainder[..., None])[..., 0]
        below = widths - remainder
        # Profiles hold between whole blocks that were both within the grid.
        whole = (below >= self._blocks) & (below + self._blocks <= self._largest) & (self._blocks > 1)
        widths = torch.where(whole, below + self._blocks * shares, widths)
        return _interpolated(widths, self._widths, self._times)

    def expected(self, keep_probability: torch.Tensor) -> torch.Tensor:
        """The milliseconds at the expected widths.

        Args:
            keep_probability: Shape (units,), in [0, 1].

        Returns:
            0-d tensor, float64 (float32 if the device has no float64), differentiable: its gradient is the slope
            between neighbouring points of the grid.
        """
        dtype = torch.float32 if keep_probability.device.type == "mps" else torch.float64
        on = self._on(keep_probability.device, dtype)
        kept = keep_probability.to(dtype)[on.unit] * on.count
        sizes = on.fixed.index_add(0, on.owner, kept)
        times = _interpolated(sizes[on.factors], on.widths, on.times)
        return self.scale * (times * on.counts).sum() + self.constant

    def _on(self, device: torch.device, dtype: torch.dtype) -> LatencyTensors:
        if (device, dtype) not in self._moved:
            real = (self._widths, self._times, self._fixed, self._count, self._counts)
            index = (self._factors, self._owner, self._unit)
            self._moved[device, dtype] = LatencyTensors(
                *(tensor.to(device, dtype) for tensor in real), *(tensor.to(device) for tensor in index)
            )
        return self._moved[device, dtype]


@dataclass(frozen=True)
class LatencyTensors:
    """The arrays of a `LatencyCost` on one device."""

    widths: torch.Tensor
    times: torch.Tensor
    fixed: torch.Tensor
    count: torch.Tensor
    counts: torch.Tensor
    factors: torch.Tensor
    owner: torch.Tensor
    unit: torch.Tensor


def _interpolated(at: torch.Tensor, widths: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """Bilinear interpolation.

    Args:
        at: The widths to evaluate, shape (cells, 2).
        widths: The grid, shape (cells, 2, points), increasing.
        times: Its values, shape (cells, points, points).

    Returns:
        Shape (cells,).
    """
    points = widths.shape[-1]
    right = torch.searchsorted(widths, at.detach()[..., None].contiguous()).clamp(1, points - 1)
    low = widths.gather(2, right - 1)[..., 0]
    high = widths.gather(2, right)[..., 0]
    # Widths below the smallest that was measured cost as much as that. None is above the largest, the dense one, and
    # torch 2.14 gives no gradient where a value equals a bound of clamp.
    share = ((at - low) / (high - low)).clamp(min=0.0)
    cell = torch.arange(len(at), device=at.device)
    row, column = right[:, 0, 0], right[:, 1, 0]
    across = share[:, 1]
    upper = times[cell, row - 1, column - 1] * (1 - across) + times[cell, row - 1, column] * across
    lower = times[cell, row, column - 1] * (1 - across) + times[cell, row, column] * across
    return upper * (1 - share[:, 0]) + lower * share[:, 0]
