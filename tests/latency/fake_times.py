"""Times that follow from sizes alone, so that tests neither wait nor depend on the machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from prunegate.latency import Latency, Measured
from prunegate.latency.cell_times import CellTimes
from prunegate.latency.cells import Cell
from prunegate.measuring import Timing


def rounded_up(width: int, dense: int) -> int:
    block = 16 if dense >= 48 else 4
    return -(-width // block) * block


def in_blocks(self: CellTimes, cell: Cell, widths: tuple[int | None, ...]) -> tuple[tuple[int, ...], float]:
    """Kernels that compute whole blocks of 16 channels, or of 4 in narrow layers."""
    reached = [
        factor.size if width is None else factor.narrowed(width, self.analysis.num_units)[1]
        for factor, width in zip(cell.factors, widths, strict=True)
    ]
    blocks = [rounded_up(width, factor.size) for width, factor in zip(reached, cell.factors, strict=True)]
    return tuple(reached), 1e-4 * float(np.prod(blocks))


def in_all(self: Latency, keep: np.ndarray, seconds: float = 0.0) -> Measured:
    """The whole model: a fixed part, and operations that take less time together than each by itself."""
    whole = self.cost.sum_of_surfaces(np.ones_like(keep))
    ratio = 0.2 + 0.8 * (self.cost.sum_of_surfaces(keep) / whole) ** 1.15
    return Measured(*(Timing(ms, ms, ms, 9) for ms in (10.0 * ratio, 10.0)))


@contextmanager
def fake_times() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CellTimes, "milliseconds", in_blocks)
        patch.setattr(Latency, "measured", in_all)
        patch.setattr(
            "prunegate.latency.latency.time_in_turn", lambda calls, *_, **__: [Timing(10.0, 10.0, 10.0, 9)] * len(calls)
        )
        yield
