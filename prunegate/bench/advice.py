"""What to use on this machine: the fastest model and setting, and compact models that bring nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from prunegate.bench.measure import Bench, Row

_NOT_FASTER = (
    "Fewer MACs save no time where kernels work in fixed widths, or where a call costs more than its arithmetic. Prune "
    "again with gates.round_to: auto (or 8, 16, 32), or with a latency budget (budget.metric: latency_ms)."
)
_NOISY = (
    "Too noisy to tell whether it is faster than the dense model: {}. Measure again on an idle machine, or for longer: "
    "--seconds."
)


@dataclass(frozen=True)
class BatchAdvice:
    """The fastest row of one batch size.

    Attributes:
        speedup: Over the fastest row of its dense model; None for a dense model.
    """

    fastest: Row
    speedup: float | None
    text: str

    def as_dict(self) -> dict[str, Any]:
        row = self.fastest
        return {
            "batch_size": row.batch_size,
            "model": row.model,
            **asdict(row.setting),
            "speedup_over_dense": self.speedup,
            "text": self.text,
        }


@dataclass(frozen=True)
class Advice:
    """A recommendation per batch size, and sentences about models that are not faster than their dense model."""

    batches: tuple[BatchAdvice, ...]
    not_faster: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {"fastest": [batch.as_dict() for batch in self.batches], "not_faster": list(self.not_faster)}

    @property
    def lines(self) -> list[str]:
        return [*(batch.text for batch in self.batches), *self.not_faster]


def advise(bench: Bench) -> Advice:
    """Compare the fastest settings of every model, as these are what one would use."""
    batches: list[BatchAdvice] = []
    noisy: list[str] = []
    slower: dict[str, list[str]] = {}
    for batch_size in bench.settings.batch_sizes:
        best = _best(bench, batch_size)
        if not best:
            continue
        batches.append(_fastest(bench, best))
        for model in bench.models:
            if model.dense is None or model.name not in best or model.dense not in best:
                continue
            dense, compact = best[model.dense], best[model.name]
            if _is_faster(compact, dense):
                continue
            told = f"at batch {batch_size} ({_times(compact, dense)})"
            if _is_steady(compact) and _is_steady(dense):
                slower.setdefault(f"{model.name} is NOT faster than its dense model {model.dense}", []).append(told)
            else:
                noisy.append(f"{model.name} {told}")
    texts = [f"{who} {' and '.join(where)}." for who, where in slower.items()]
    texts += [_NOT_FASTER] if slower else []
    texts += [_NOISY.format(", ".join(noisy))] if noisy else []
    return Advice(tuple(batches), tuple(texts))


def setting_text(bench: Bench, row: Row) -> str:
    """The parts of a row's setting that vary in the benchmark; empty if none does."""
    return ", ".join(part for part, varies in zip(row.setting.parts, varying(bench), strict=True) if varies)


def ms_text(ms: float, like: float | None = None) -> str:
    """Milliseconds with about three digits, or with as many decimals as ``like`` gets."""
    size = ms if like is None else like
    return f"{ms:,.0f}" if size >= 100 else f"{ms:.1f}" if size >= 10 else f"{ms:.2f}"


def varying(bench: Bench) -> tuple[bool, ...]:
    """For each of `Setting.parts`, whether the benchmark has several values of it."""
    settings = bench.settings
    return tuple(len(v) > 1 for v in (settings.runtimes, settings.threads, settings.precisions, settings.layouts))


def _best(bench: Bench, batch_size: int) -> dict[str, Row]:
    """The row with the shortest median of every model."""
    best: dict[str, Row] = {}
    for row in bench.at(batch_size):
        if row.timing is not None and (row.model not in best or _median(row) < _median(best[row.model])):
            best[row.model] = row
    return best


def _fastest(bench: Bench, best: dict[str, Row]) -> BatchAdvice:
    row = min(best.values(), key=_median)
    dense = best.get(next(model.dense for model in bench.models if model.name == row.model) or "")
    text = f"Batch {row.batch_size}: fastest is {row.model}{_with(bench, row)}, {ms_text(_median(row))} ms"
    if dense is not None:
        speedup = _median(dense) / _median(row)
        text += f"; {speedup:.2f} × as fast as {dense.model}{_with(bench, dense)}, {ms_text(_median(dense))} ms"
    text += "."
    equal = [other.model for other in best.values() if other is not row and not _is_faster(row, other)]
    if equal:
        text += f" As fast within the noise: {', '.join(equal)}."
    if row.setting.precision != "float32":
        text += f" Check its accuracy in {row.setting.precision}."
    return BatchAdvice(row, None if dense is None else _median(dense) / _median(row), text)


def _with(bench: Bench, row: Row) -> str:
    text = setting_text(bench, row)
    return f" ({text})" if text else ""


def _median(row: Row) -> float:
    assert row.timing is not None
    return row.timing.median_ms


def _is_steady(row: Row) -> bool:
    return row.timing is not None and row.timing.is_steady


def _is_faster(row: Row, other: Row) -> bool:
    """Whether it is faster by more than the noise: the confidence intervals of the medians do not overlap."""
    assert row.timing is not None
    assert other.timing is not None
    return row.timing.median_interval_ms[1] < other.timing.median_interval_ms[0]


def _times(compact: Row, dense: Row) -> str:
    return f"{ms_text(_median(compact))} against {ms_text(_median(dense))} ms"
