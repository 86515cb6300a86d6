"""Measuring models side by side: all that have the same batch size and number of threads take turns."""

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from prunegate.bench.models import Contender
from prunegate.bench.settings import BenchSettings
from prunegate.errors import BenchError, PrunegateError, first_line
from prunegate.groups import ExampleInputs
from prunegate.measuring import Timing, peak_activation_bytes, time_in_turn
from prunegate.quiet import quietly
from prunegate.report import counted_macs
from prunegate.runtimes import Prepared, Preparer, Setting, described, of_batch
from prunegate.version import __version__

_LEAST_SAMPLES = 5
# Calls shorter than this get an untimed one before each timed one; for longer ones its effect is lost in the time.
_SHORT_SECONDS = 0.1
# A call that takes more than this many times the time for its whole row is not measured.
_SLOWEST = 10
_LONGEST_REASON = 240
# Loggers of compilers and exporters; what fails becomes a row's reason.
_NOISY = ("torch._dynamo", "torch._inductor", "torch.utils.cpp_extension")


@dataclass(frozen=True)
class Row:
    """One model in one setting at one batch size.

    Attributes:
        timing: Of one call; None if it cannot be run.
        reason: Why it cannot be run, else None.
        weight_bytes: Of the model in memory, in its precision.
        activation_bytes: See `peak_activation_bytes`; None if it cannot be measured.
    """

    model: str
    batch_size: int
    setting: Setting
    timing: Timing | None = None
    reason: str | None = None
    weight_bytes: int | None = None
    activation_bytes: int | None = None

    @property
    def samples_per_second(self) -> float | None:
        return None if self.timing is None else self.batch_size / self.timing.median_ms * 1e3


@dataclass(frozen=True)
class ModelSize:
    """A measured model: where it comes from, and its size.

    Attributes:
        dense: Name of its dense model; None if it is dense itself.
        macs: Per sample on the benchmark's inputs; None if they cannot be counted.
    """

    name: str
    source: str
    dense: str | None
    params: int
    macs: int | None


@dataclass(frozen=True)
class Bench:
    """A finished benchmark."""

    models: tuple[ModelSize, ...]
    inputs: str
    settings: BenchSettings
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    machine: dict[str, Any]

    def at(self, batch_size: int) -> list[Row]:
        return [row for row in self.rows if row.batch_size == batch_size]

    def speedup(self, row: Row) -> float | None:
        """How many times as fast as its dense model in the same setting; None for a dense model."""
        dense = next(model.dense for model in self.models if model.name == row.model)
        for other in self.at(row.batch_size):
            if other.model == dense and other.setting == row.setting and other.timing and row.timing:
                return other.timing.median_ms / row.timing.median_ms
        return None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {
            "machine": self.machine,
            "inputs": self.inputs,
            "settings": asdict(self.settings),
            "models": [asdict(model) for model in self.models],
            "rows": [self._row_as_dict(row) for row in self.rows],
            "notes": list(self.notes),
        }

    def _row_as_dict(self, row: Row) -> dict[str, Any]:
        timing = row.timing
        return {
            "model": row.model,
            "batch_size": row.batch_size,
            **asdict(row.setting),
            "median_ms": timing and timing.median_ms,
            "quartiles_ms": timing and [timing.low_ms, timing.high_ms],
            "interquartile_range_ms": timing and timing.spread_ms,
            "median_interval_ms": timing and list(timing.median_interval_ms),
            "samples": timing and timing.samples,
            "is_steady": timing and timing.is_steady,
            "samples_per_second": row.samples_per_second,
            "speedup": self.speedup(row),
            "weight_bytes": row.weight_bytes,
            "activation_bytes": row.activation_bytes,
            "reason": row.reason,
        }


def run_bench(
    contenders: Sequence[Contender],
    inputs: ExampleInputs,
    settings: BenchSettings,
    notes: Sequence[str] = (),
    progress: Callable[[str], None] = lambda text: None,
) -> Bench:
    """Measure every model in every setting; what cannot be run becomes a row with the reason.

    Args:
        inputs: Of all models.
        notes: To be reported with the results.
        progress: Is told what is being done, in a few words.
    """
    rows: list[Row] = []
    threads_before = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="prunegate-bench-") as folder, quietly(*_NOISY):
        preparer = Preparer(Path(folder), settings.device)
        try:
            for batch_size in settings.batch_sizes:
                batch = of_batch(inputs, batch_size)
                for threads in settings.threads:
                    torch.set_num_threads(threads)
                    where = f"batch {batch_size}, {threads} thread{'s' if threads > 1 else ''}: "
                    group = list(settings.settings(threads))
                    with _compiling("compiled" in settings.runtimes):
                        rows += _group(contenders, batch, group, settings, preparer, _prefixed(where, progress))
        finally:
            torch.set_num_threads(threads_before)
    sizes = tuple(
        ModelSize(one.name, one.source, one.dense, sum(p.numel() for p in one.model.parameters()), _macs(one, inputs))
        for one in contenders
    )
    return Bench(sizes, described(inputs), settings, tuple(rows), tuple(notes), _machine(settings.device))


def _prefixed(prefix: str, progress: Callable[[str], None]) -> Callable[[str], None]:
    return lambda text: progress(prefix + text)


@dataclass
class _Runner:
    row: Row
    prepared: Prepared
    seconds: float


def _group(
    contenders: Sequence[Contender],
    inputs: ExampleInputs,
    group: Sequence[Setting],
    settings: BenchSettings,
    preparer: Preparer,
    progress: Callable[[str], None],
) -> list[Row]:
    """The rows of one batch size and number of threads, measured in turn."""
    rows: list[Row] = []
    runners: dict[int, _Runner] = {}
    for setting in group:
        for one in contenders:
            progress(f"{one.name}, {setting.runtime}")
            row = Row(one.name, inputs.batch_size(), setting)
            try:
                runner = _warm(row, preparer.prepare(one.name, one.model, inputs, setting), settings)
                row, runners[len(rows)] = runner.row, runner
            except Exception as error:  # models, torch and runtimes may raise anything; the others are still measured
                row = Row(one.name, inputs.batch_size(), setting, reason=_reason(error))
            rows.append(row)
    progress(f"timing {len(runners)} of {len(rows)} in turn")
    fastest = min((runner.seconds for runner in runners.values()), default=0.0)
    timings = time_in_turn(
        [runner.prepared.call for runner in runners.values()],
        settings.seconds * len(runners),
        device=settings.device,
        least_samples=_LEAST_SAMPLES,
        warm_up=0,
        untimed=int(fastest < _SHORT_SECONDS),
    )
    for place, timing in zip(runners, timings, strict=True):
        rows[place] = replace(rows[place], timing=timing)
    return rows


@torch.no_grad()
def _warm(row: Row, prepared: Prepared, settings: BenchSettings) -> _Runner:
    """Call it until compilation and caches are done, and measure its memory.

    Raises:
        BenchError: A call takes so long that measuring it would take far longer than asked for.
    """
    prepared.call()
    began = time.perf_counter()
    prepared.call()
    if settings.device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    if seconds > _SLOWEST * settings.seconds:
        raise BenchError(
            f"one call takes {seconds:.0f} s, so that measuring it would take minutes; raise --seconds to "
            f"{seconds / _SLOWEST:.0f} or more to do so"
        )
    activations = None
    if settings.device == "cuda" or prepared.in_dispatcher:
        activations = peak_activation_bytes(prepared.call, settings.device)
    row = replace(row, weight_bytes=prepared.weight_bytes, activation_bytes=activations)
    return _Runner(row, prepared, seconds)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) if isinstance(error, PrunegateError) else first_line(error)
    if not isinstance(error, PrunegateError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]} ..."


def _macs(one: Contender, inputs: ExampleInputs) -> int | None:
    """MACs per sample on inputs of one tensor; None if the model cannot be run on them, or not be counted."""
    if len(inputs.args) != 1 or inputs.kwargs or not inputs.tensors()[0].is_floating_point():
        return None
    try:
        return counted_macs(one.model, inputs.tensors()[0].shape[1:])
    except Exception:  # the model's own code may raise anything; its rows say so
        return None


@contextlib.contextmanager
def _compiling(used: bool) -> Iterator[None]:
    """For models that are compiled in the block, which are forgotten afterwards."""
    if not used:
        yield  # without importing the compiler, which takes seconds
        return
    import torch._dynamo

    config: Any = torch._dynamo.config
    # Dense and compact models share their code; beyond the limit, torch would run the later ones eagerly.
    limits = {name: _MANY for name in ("recompile_limit", "accumulated_recompile_limit") if hasattr(config, name)}
    try:
        with config.patch(**limits):
            yield
    finally:
        torch._dynamo.reset()


_MANY = 10_000


def _machine(device: str) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "torch": torch.__version__,
        "prunegate": __version__,
    }


def _processor() -> str:
    """The name of the processor, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
