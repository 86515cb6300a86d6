"""The latency of a gated model on the machine at hand: predicted for any mask, and measured."""

from __future__ import annotations

import hashlib
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from prunegate.costs.latency_cost import LatencyCost, Surface, TimedCell
from prunegate.errors import BenchError, BudgetError, ExportError, PrunegateWarning, TraceError, first_line
from prunegate.groups import Analysis, Tape, Trace
from prunegate.groups.solving.partition import Ids
from prunegate.latency.blocks import blocks_of
from prunegate.latency.cache import Cache, described, environment, surface_of
from prunegate.latency.cell_times import CellTimes
from prunegate.latency.cells import Cell, cells_of
from prunegate.latency.conditions import clock_of, conditions
from prunegate.latency.settings import LatencySettings
from prunegate.latency.subnetworks import random_subnetwork
from prunegate.measuring import Timing, time_in_turn
from prunegate.runtimes import Preparer, Setting, of_batch
from prunegate.wrapping import GatedModel, candidate

logger = logging.getLogger(__name__)

Mask = npt.NDArray[np.bool_]

# Random subnetworks on which the sum of the operations' times is calibrated.
_CALIBRATION = 8
_SECONDS = 1.0
# Candidates that are built and timed until one meets the limit, the share of the limit to aim at, and the least share
# that will do.
_ATTEMPTS = 8
_AIM = 0.975
_LEAST = 0.95


@dataclass(frozen=True)
class Measured:
    """The latency of one compact candidate beside the dense model's, measured in turn."""

    candidate: Timing
    dense: Timing

    @property
    def ratio(self) -> float:
        """Candidate over dense."""
        return self.candidate.median_ms / self.dense.median_ms

    @property
    def is_steady(self) -> bool:
        return self.candidate.is_steady and self.dense.is_steady


class Latency:
    """Predicts and measures the latency of a gated model's compact candidates.

    Attributes:
        settings: Of which call, and on what.
        cost: The prediction, in milliseconds; `GatedModel.expected_cost("latency_ms")` uses it.
        dense_ms: Latency of the dense model, in milliseconds. All others are measured in turn with the dense model and
            scaled to this one.
        measurements: Measured milliseconds by mask, so that no mask is measured twice.
        correction: Predicted over measured milliseconds near the limit; see `prepare`.
        environment: What measured times depend on besides the operation.
    """

    def __init__(
        self,
        gated: GatedModel,
        settings: LatencySettings,
        surfaces: Mapping[str, Surface],
        agree: Callable[[Callable[[], float]], float] | None = None,
    ) -> None:
        """From measured surfaces, by the signature of their operation; not calibrated.

        Args:
            agree: Calls its argument in one of several processes, and returns the result in all of them.
        """
        self._gated, self.settings, self._agree = gated, settings, agree
        self.device = _usable(settings.device or str(next(gated.model.parameters()).device))
        self.num_threads = settings.threads or torch.get_num_threads()
        self.environment = environment(self.device, self.num_threads, settings.precision)
        self._clock = clock_of(self.device, self.num_threads)
        self._tape, self._analysis, self._units = self._run()
        self._cells = cells_of(self._tape, self._analysis)
        self._use(surfaces)
        self.dense_ms = math.nan
        self.correction = 1.0
        self.measurements: dict[str, float] = {}
        self._dense: Callable[[], object] | None = None
        self._blocks: list[int] | None = None

    @classmethod
    def measure(
        cls,
        gated: GatedModel,
        settings: LatencySettings,
        cache: Path | None = None,
        agree: Callable[[Callable[[], float]], float] | None = None,
    ) -> Latency:
        """Time the operations that the cache does not know, and calibrate their sum."""
        made = cls(gated, settings, {}, agree)
        with conditions(made.num_threads):
            made._use(made._measured_surfaces(cache))
            made._calibrate()
        return made

    @classmethod
    def of_state(
        cls,
        gated: GatedModel,
        state: Mapping[str, Any],
        agree: Callable[[Callable[[], float]], float] | None = None,
    ) -> Latency:
        """The reverse of `state_dict`, for the same model."""
        settings = LatencySettings.model_validate(state["settings"])
        surfaces = {key: surface_of(value) for key, value in state["surfaces"].items()}
        made = cls(gated, settings, surfaces, agree)
        made.dense_ms, made.correction = state["dense_ms"], state["correction"]
        made.cost = made.cost.calibrated(state["scale"], state["constant"], made.dense_ms)
        made.measurements = dict(state["measurements"])
        return made

    def state_dict(self) -> dict[str, Any]:
        """Everything that was measured, JSON-ready."""
        return {
            "environment": self.environment,
            "settings": self.settings.model_dump(),
            "dense_ms": self.dense_ms,
            "scale": self.cost.scale,
            "constant": self.cost.constant,
            "correction": self.correction,
            "measurements": self.measurements,
            "surfaces": {key: described(surface) for key, surface in self._surfaces.items()},
        }

    def of_model(self, gated: GatedModel) -> Latency:
        """The same measurements for another gating of the same model."""
        return Latency.of_state(gated, self.state_dict(), self._agree)

    def __getstate__(self) -> dict[str, Any]:
        # Calls of models and of other processes are made anew.
        return {**vars(self), "_dense": None, "_agree": None}

    def __repr__(self) -> str:
        s = self.settings
        return (
            f"Latency({self.dense_ms:.3g} ms dense; batch {s.batch_size}, {self.device}, {self.num_threads} threads, "
            f"{s.precision}, {s.runtime}; {len(self.cost.cells)} operations timed)"
        )

    @property
    def not_timed(self) -> list[str]:
        """Operations that could not be run by themselves; their time counts as constant."""
        return [_told(self._tape, cell) for cell in self._cells if cell.signature not in self._surfaces]

    def _use(self, surfaces: Mapping[str, Surface]) -> None:
        """Predict by these surfaces."""
        known = [cell for cell in self._cells if cell.signature in surfaces]
        self._surfaces = {cell.signature: surfaces[cell.signature] for cell in known}
        timed = [
            TimedCell(surfaces[cell.signature], tuple(_of(factor.axis, self._units) for factor in cell.factors))
            for cell in known
        ]
        self.cost = LatencyCost(timed, self._gated.analysis.num_units)

    def _run(self) -> tuple[Tape, Analysis, Ids]:
        """The run at the batch size that counts, and the gated model's unit for each of its units."""
        gated = self._gated
        if gated.example_inputs.batch_size() == self.settings.batch_size:
            return gated.trace.tape, gated.analysis, np.arange(gated.analysis.num_units)
        inputs = of_batch(gated.example_inputs.alone(), self.settings.batch_size)
        try:
            trace = Trace(gated.dense_copy(share_weights=True).eval(), inputs)
        except TraceError as error:
            raise BudgetError(
                f"latency: the model does not run on its example inputs repeated to {self.settings.batch_size} "
                f"samples, whose first dimension is taken as the batch: {first_line(error)} Wrap it with example "
                "inputs of the batch size that counts, and measure with that."
            ) from error
        whole_heads = gated.fix_ups.whole_heads
        analysis = trace.analysis(whole_heads=None if whole_heads is None else frozenset(whole_heads))
        units = np.full(analysis.num_units, -1, dtype=np.int64)
        for name, axes in analysis.axes.items():
            for axis, own in axes.items():
                given = gated.analysis.axes.get(name, {}).get(axis)
                if given is not None:
                    units[own[own >= 0]] = given[own >= 0]
        return trace.tape, analysis, units

    def _measured_surfaces(self, folder: Path | None) -> dict[str, Surface]:
        store = Cache(self.environment, folder)
        surfaces = store.read()
        missing = {cell.signature: cell for cell in self._cells if cell.signature not in surfaces}
        if missing:
            weights = sum(p.numel() for p in self._gated.model.parameters()) * self.settings.dtype.itemsize
            times = CellTimes(self._tape, self._analysis, self.device, self.settings.dtype, weights, self._clock)
            measured = {signature: times.surface(cell) for signature, cell in missing.items()}
            new = {signature: surface for signature, surface in measured.items() if surface is not None}
            surfaces.update(new)
            try:
                store.add(new)
            except OSError as error:
                warnings.warn(
                    f"{store.path}: measured latencies cannot be kept there for the next time: {error.strerror}. Set "
                    "XDG_CACHE_HOME, or pass cache=, to a folder that can be written.",
                    PrunegateWarning,
                    stacklevel=2,
                )
        return surfaces

    def _calibrate(self) -> None:
        """Fit scale and constant to random subnetworks, with the least sum of squared relative errors."""
        self.dense_ms = time_in_turn([self._dense_call()], _SECONDS, device=self.device, clock=self._clock)[0].median_ms
        generator = np.random.default_rng(0)
        masks = [random_subnetwork(self._gated, generator) for _ in range(_CALIBRATION)]
        sums = np.array([self.cost.sum_of_surfaces(keep) for keep in masks])
        measured = np.array([self.measured(keep).ratio * self.dense_ms for keep in masks])
        scale, constant = _fitted(sums, measured)
        logger.info("calibrated: %.3f times the sum of the operations, and %.3g ms", scale, constant)
        self.cost = self.cost.calibrated(scale, constant, self.dense_ms)

    @property
    def batch_size(self) -> int:
        """Samples in one call."""
        return self.settings.batch_size

    @property
    def blocks(self) -> list[int]:
        """For each channel group, the multiple of units that runs fastest; see `prunegate.latency.blocks`."""
        if self._blocks is None:
            self._blocks = blocks_of(self.cost, self._gated.groups)
        return self._blocks

    def meet(self, propose: Callable[[float], Mask | None], limit: float) -> Mask | None:
        """The mask whose compact model is the slowest within the limit, among a few that are built and timed.

        Args:
            propose: Returns the mask for a limit on the predicted milliseconds, or None if there is none.
            limit: Milliseconds.

        Returns:
            The mask, or None if no mask meets the limit.
        """
        best: tuple[float, Mask] | None = None
        asked = limit * _AIM * self.correction
        for _ in range(_ATTEMPTS):
            keep = propose(asked)
            if keep is None and best is None:  # predictions may be too high; the narrowest model decides
                keep = propose(self.predicted(self._gated.narrowest()) * (1.0 + 1e-9))
            if keep is None:
                break
            real = self.milliseconds(keep)
            logger.info("asked for %.3f ms, predicted %.3f ms, measured %.3f ms", limit, self.predicted(keep), real)
            if real <= limit and (best is None or real > best[0]):
                best = real, keep
            if limit * _LEAST <= real <= limit:
                break
            asked *= limit * _AIM / real
        return None if best is None else best[1]

    def _agreed(self, measure: Callable[[], float]) -> float:
        return measure() if self._agree is None else self._agree(measure)

    def prepare(self, propose: Callable[[float], Mask | None], limit: float) -> bool:
        """Learn, on masks like those to come, how far predictions near a limit are off; False if none is within it.

        Later calls of `meet` start from there, so that they mostly accept their first candidate, and measuring again
        after a resumed run hardly ever changes the masks.
        """
        keep = self.meet(propose, limit)
        if keep is not None:
            self.correction = self.predicted(keep) / self.milliseconds(keep)
        return keep is not None

    def milliseconds(self, keep: Mask) -> float:
        """The measured latency of a mask's compact model; measured once."""
        key = hashlib.sha256(np.packbits(keep).tobytes()).hexdigest()[:24]
        if key not in self.measurements:
            self.measurements[key] = self._agreed(lambda: self.measured(keep).ratio * self.dense_ms)
        return self.measurements[key]

    def _dense_call(self) -> Callable[[], object]:
        """A call of the dense model, ready to be timed."""
        if self._dense is None:
            self._dense = self.call_of(self._gated.dense_copy())
        return self._dense

    def call_of(self, model: nn.Module) -> Callable[[], object]:
        """A call of a model on one batch as the settings describe it, ready to be timed; the model is not modified.

        Raises:
            BudgetError: It cannot be run so.
        """
        s = self.settings
        inputs = of_batch(self._gated.example_inputs.alone(), s.batch_size)
        try:
            with tempfile.TemporaryDirectory() as folder:
                preparer = Preparer(Path(folder), str(self.device))
                setting = Setting(self.num_threads, "contiguous", s.precision, s.runtime)
                return preparer.prepare("", model, inputs, setting).call
        except (BenchError, ExportError) as error:
            raise BudgetError(
                f"latency: the model cannot be run as {s.runtime} in {s.precision} on {self.device}: "
                f"{str(error).rstrip('.')}. Choose another runtime or precision."
            ) from error

    def predicted(self, keep: Mask) -> float:
        """The predicted milliseconds under hard masks, shape (units,)."""
        return self.cost.exact(keep)

    @torch.no_grad()
    def measured(self, keep: Mask, seconds: float = _SECONDS) -> Measured:
        """Build the compact candidate of a mask, and time it in turn with the dense model."""
        model = candidate(self._gated, keep)
        with conditions(self.num_threads):
            call = self.call_of(model)
            ours, dense = time_in_turn([call, self._dense_call()], seconds, device=self.device, clock=self._clock)
        return Measured(ours, dense)


def _usable(name: str) -> torch.device:
    """The device of that name.

    Raises:
        BudgetError: Nothing can be computed there.
    """
    try:
        device = torch.device(name)
        torch.ones(1, device=device).add(1).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BudgetError(
            f"latency.device: found {name!r}, on which this machine cannot compute: {first_line(error)} Use 'cpu', or "
            "'cuda' where there is a GPU; load weights into a model on the meta device first."
        ) from error
    return device


def _fitted(sums: npt.NDArray[np.float64], measured: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Scale and constant, neither of them negative."""
    relative, ones = sums / measured, 1.0 / measured
    both, *_ = np.linalg.lstsq(np.stack([relative, ones], axis=1), np.ones_like(sums), rcond=None)
    if both.min() >= 0:
        return float(both[0]), float(both[1])
    if both[1] < 0 and relative.any():
        return float(relative.sum() / (relative**2).sum()), 0.0
    return 0.0, float(ones.sum() / (ones**2).sum())


def _of(axis: Ids, units: Ids) -> Ids:
    """An axis in the gated model's numbering."""
    return np.where(axis >= 0, units[axis], -1)


def _told(tape: Tape, cell: Cell) -> str:
    if isinstance(cell.operation, int):
        return str(tape.operations[cell.operation].func)
    return str(getattr(cell.operation.target, "__name__", cell.operation.target))
