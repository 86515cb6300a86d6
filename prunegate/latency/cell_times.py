"""Timing one cell at many widths on the machine at hand."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from prunegate.costs.latency_cost import Profile, Surface
from prunegate.groups import Analysis, Tape, map_values
from prunegate.latency.cells import Cell, Factor
from prunegate.latency.narrowing import Narrowed
from prunegate.measuring import Timing, time_in_turn

logger = logging.getLogger(__name__)

# Weights are read at as many places in turn, since a model's other weights push them out of the caches.
_PLACES = 8
_SECONDS = 0.004
_LEAST_SAMPLES = 5
# Calls shorter than this are timed several at a time.
_SHORT_MS = 0.02
# Channels that kernels compute together: AVX-512 and NEON registers, tensor cores.
_BLOCK = {"cpu": 16, "cuda": 32}


class CellTimes:
    """Times cells of one run.

    Args:
        device, dtype: Where and with what type the model computes.
        weight_bytes: Size of all weights, which compete for the caches.
    """

    def __init__(
        self, tape: Tape, analysis: Analysis, device: torch.device, dtype: torch.dtype, weight_bytes: int,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.tape, self.analysis, self.device, self.dtype = tape, analysis, device, dtype
        self._clock = clock
        self.block = _BLOCK.get(device.type, 16)
        entries = min(max(weight_bytes, 4 << 20), 256 << 20) // dtype.itemsize
        # Of both signs, as comparisons of equal numbers are predicted and cost nothing.
        generator = torch.Generator(device).manual_seed(0)  # measuring takes nothing from a run's own random numbers
        self._pool = torch.randn(entries, device=device, generator=generator).to(dtype)

    def surface(self, cell: Cell) -> Surface | None:
        """The cell's times over its widths; None if it cannot run by itself."""
        try:
            self.milliseconds(cell, (None,) * len(cell.factors))
        except Exception as error:  # operations may raise anything on inputs that did not come from the model
            logger.info("not timed: %s: %s", cell.operation, error)
            return None
        known: dict[tuple[int | None, ...], tuple[tuple[int, ...], float]] = {}

        def at(*widths: int | None) -> tuple[tuple[int, ...], float]:
            if widths not in known:
                known[widths] = self.milliseconds(cell, widths)
            return known[widths]

        try:
            return self._measured(cell, at)
        except Exception as error:
            logger.info("not timed on fewer channels: %s: %s", cell.operation, error)
            return None

    def _measured(self, cell: Cell, at: Callable[..., tuple[tuple[int, ...], float]]) -> Surface:
        wanted = [self._widths(factor, cell.is_contraction) for factor in cell.factors]
        grid = np.array([at(*widths)[1] for widths in itertools.product(*wanted)])
        grid = grid.reshape([len(widths) for widths in wanted] + [1] * (2 - len(wanted)))
        for axis in range(2):  # more channels never take less time, except by chance
            grid = np.maximum.accumulate(grid, axis=axis)
        profiles = [
            self._profile(cell, place, at) if cell.is_contraction else None for place in range(len(cell.factors))
        ]
        return Surface(
            tuple(tuple(int(width) for width in widths) for widths in wanted),
            tuple(tuple(map(float, row)) for row in grid),
            tuple(profiles),
        )

    def _widths(self, factor: Factor, is_contraction: bool) -> list[int]:
        """The widths to measure: from one unit to the dense width, most of them whole blocks."""
        size, count = factor.size, self.analysis.num_units
        block = self._block_of(factor)
        if not is_contraction:
            targets = [1, *(round(size * share) for share in (0.25, 0.5, 1.0))]
        elif block == self.block:
            shares = (0.125, 0.25, 0.5, 0.75)
            targets = [1, block, *(round(size * share / block) * block for share in shares), size]
        else:
            targets = [1, *range(block, size, block), size]
        return sorted({factor.narrowed(max(target, 1), count)[1] for target in targets})

    def _block_of(self, factor: Factor) -> int:
        """The distance of widths that are measured: a block of the kernels, or less on narrow layers."""
        if factor.size >= 3 * self.block:
            return self.block
        return max(1, (1 << (factor.size.bit_length() - 1)) // 8)

    def _profile(self, cell: Cell, place: int, at: Callable[..., tuple[tuple[int, ...], float]]) -> Profile | None:
        """How the time grows between two whole blocks in the middle of the grid."""
        factor = cell.factors[place]
        block = self._block_of(factor)
        base = factor.size // 2 // block * block
        if block == 1 or base < block or base + block > factor.size:
            return None

        def time(width: int) -> float | None:
            widths: list[int | None] = [None] * len(cell.factors)
            widths[place] = width
            reached, milliseconds = at(*widths)
            return milliseconds if reached[place] == width else None

        times = [time(base + more) for more in range(block + 1)]
        if any(one is None for one in times):  # units are wider than a channel
            return None
        reached = [one for one in times if one is not None]
        rise = reached[-1] - reached[0]
        if rise <= 0.02 * reached[0]:
            return None
        return Profile(block, tuple(float(np.clip((one - reached[0]) / rise, 0.0, 3.0)) for one in reached[:-1]))

    def milliseconds(self, cell: Cell, widths: tuple[int | None, ...]) -> tuple[tuple[int, ...], float]:
        """The widths reached and the time, where the factors have at most these widths; None for the dense one."""
        num_units = self.analysis.num_units
        keep = np.ones(num_units, dtype=bool)
        reached = []
        for factor, width in zip(cell.factors, widths, strict=True):
            if width is None:
                reached.append(factor.size)
                continue
            mask, size = factor.narrowed(width, num_units)
            keep &= mask
            reached.append(size)
        sizes = Narrowed(self.tape, self.analysis.units_of, keep)
        if any(0 in sizes.shape(root) for root in cell.roots):  # one of several groups that it reads is gone
            return tuple(reached), 0.0
        return tuple(reached), self._timed(self._calls(cell, sizes)).low_ms

    def _timed(self, calls: list[Callable[[], object]]) -> Timing:
        in_turn = itertools.cycle(calls)

        def call() -> None:
            next(in_turn)()

        first = time_in_turn([call], 0.0, device=self.device, least_samples=3, warm_up=2, clock=self._clock)[0]
        together = 1 if first.low_ms > _SHORT_MS else min(20, int(_SHORT_MS / max(first.low_ms, 1e-3)) + 1)
        return time_in_turn(
            [call], _SECONDS, device=self.device, least_samples=_LEAST_SAMPLES, warm_up=0, calls_per_sample=together,
            clock=self._clock,
        )[0]  # fmt: skip

    def _calls(self, cell: Cell, sizes: Narrowed) -> list[Callable[[], object]]:
        """The operation on tensors of the sizes under a mask, once for every place of the weights."""
        stored = any(self._is_stored(root) for root in cell.roots)
        hot = self._roots(cell, sizes, 0)
        calls = []
        for place in range(_PLACES if stored else 1):
            tensors = hot if place == 0 else {**hot, **self._roots(cell, sizes, place, only_stored=True)}
            calls.append(self._call(cell, sizes, dict(tensors)))
        return calls

    def _call(self, cell: Cell, sizes: Narrowed, tensors: dict[int, Any]) -> Callable[[], object]:
        for view in cell.views:
            op = self.tape.operations[view]
            args, kwargs = self._operands(sizes.arguments(op), tensors)
            made = op.func(*args, **kwargs)
            for number, tensor in zip(op.results, made if op.is_sequence else [made], strict=True):
                tensors[number] = tensor
        if isinstance(cell.operation, int):
            op = self.tape.operations[cell.operation]
            args, kwargs = self._operands(sizes.arguments(op), tensors)
            function: Callable[..., object] = op.func
        else:
            span = cell.operation
            assert callable(span.target)
            args, kwargs = self._operands((span.args, span.kwargs), tensors)
            function = span.target
        return lambda: function(*args, **kwargs)

    def _operands(self, arguments: Any, tensors: dict[int, Any]) -> Any:
        """Arguments with tensors for their numbers, on the device that is measured instead of the traced one."""
        args, kwargs = map_values(arguments, lambda value: tensors[self.tape.root(value.number)])
        return args, ({**kwargs, "device": self.device} if kwargs.get("device") is not None else kwargs)

    def _is_stored(self, number: int) -> bool:
        source = self.tape.sources.get(number)
        return source is not None and source.kind == "stored"

    def _roots(self, cell: Cell, sizes: Narrowed, place: int, only_stored: bool = False) -> dict[int, torch.Tensor]:
        return dict(self._made(cell, sizes, place, only_stored))

    def _made(self, cell: Cell, sizes: Narrowed, place: int, only_stored: bool) -> Iterator[tuple[int, torch.Tensor]]:
        for number in cell.roots:
            stored = self._is_stored(number)
            if only_stored and not stored:
                continue
            shape, dtype = sizes.shape(number), self.tape.dtypes[number]
            if not dtype.is_floating_point:
                fill = torch.ones if dtype is torch.bool else torch.zeros
                yield number, fill(shape, dtype=dtype, device=self.device)
                continue
            entries = int(np.prod(shape))
            if stored and entries <= len(self._pool):
                step = (len(self._pool) - entries) // _PLACES
                yield number, self._pool[place * step : place * step + entries].reshape(shape)
            else:
                repeats = -(-entries // len(self._pool))
                source = self._pool if repeats == 1 else self._pool.repeat(repeats)
                yield number, source[:entries].clone().reshape(shape)
