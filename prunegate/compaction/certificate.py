"""A certificate: how far the compact model's outputs are from the gated model's, measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from prunegate.compaction.cases import ROUNDINGS, Case, compared
from prunegate.compaction.equivalence import Difference, Kept, Side, gap, put_aside, run
from prunegate.compaction.precision import Narrows, Widely, converted, in_precision
from prunegate.errors import CompactionError

# Largest relative difference, max|compact − gated| / max|gated|, at which a compaction is handed out.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}


@dataclass(frozen=True)
class Certificate:
    """What was compared, and how close it is.

    Attributes:
        float64: Differences with both models in double precision, over all that is in `checked`: the proof of
            losslessness. None for a model that does not run in double precision.
        float32: Differences in single precision, on the example inputs alone: what rounding adds.
        checked: What was compared: mode, size of the inputs, gradients.
        not_checked: What could not be, with the reason.
        limits: Conditions outside of which nothing is shown, known since the model was wrapped.
    """

    float64: Difference | None
    float32: Difference
    checked: tuple[str, ...] = ()
    not_checked: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; null stands for outputs of another form."""
        result = asdict(self)
        for precision in ("float64", "float32"):
            if result[precision] is not None:
                result[precision] = {k: v if math.isfinite(v) else None for k, v in result[precision].items()}
        return {
            **result,
            "checked": list(self.checked),
            "not_checked": list(self.not_checked),
            "limits": list(self.limits),
        }


def certify(
    gated: Side,
    compact: Side,
    cases: Sequence[Case],
    kept: Kept,
    not_weights: Iterable[torch.Tensor] = (),
    decides_by_value: bool = False,
) -> Certificate:
    """Run both models in all cases, in double precision, and in the first in single precision as well.

    Args:
        gated: Its call has to be under fixed masks, in training too.
        kept: What the compact model has of the gated model's parameters.
        not_weights: Tensors of the gated model whose precision does not matter (logits).
        decides_by_value: The model ranks or selects by what it computes, as detectors do. In single precision
            rounding may then change the choice, so that difference is measured, not judged.

    Raises:
        CompactionError: They differ by more than `TOLERANCE` and more than rounding explains, in value or in the form
            of the outputs, or the compact model does not run where the gated one does.
    """
    skipped = list(not_weights)
    comparison = _Comparison(gated, compact, kept, skipped)
    single = comparison.run(cases[:1], torch.float32)
    double = comparison.run(cases, torch.float64)
    if single is None and double is None:
        raise CompactionError(
            f"compaction: the gated model does not run on the example inputs any more: {comparison.skipped[-1]}. "
            "Nothing can be compared. Call wrap() with inputs that it takes."
        )

    def noise() -> float:
        return comparison.rounding(cases[0]) if single is not None else 0.0

    if double is not None and not double.max_rel <= TOLERANCE[torch.float64]:
        if not (double.max_rel <= ROUNDINGS * noise() and comparison.is_narrow(cases)):
            raise CompactionError(_differs(double, torch.float64, TOLERANCE[torch.float64]))
        comparison.skipped.append(
            f"double precision: the model's code computes in single, so equality is shown to {double.max_rel:.1g}"
        )
    if single is not None and not decides_by_value and not single.max_rel <= TOLERANCE[torch.float32]:
        allowed = max(TOLERANCE[torch.float32], ROUNDINGS * noise())
        if not single.max_rel <= allowed:
            raise CompactionError(_differs(single, torch.float32, allowed))
    if single is None:
        single = Difference(math.inf, math.inf)
    return Certificate(double, single, tuple(comparison.checked), tuple(comparison.skipped))


def _differs(result: Difference, dtype: torch.dtype, allowed: float) -> str:
    return (
        f"compaction: the compact model differs from the gated one by {result.max_rel:.2g} "
        f"(relative, {str(dtype).removeprefix('torch.')}), expected at most {allowed:.0e}. "
        "Nothing is handed out that computes something else. Please report the model; until then "
        "exclude the channel groups of its unusual layers with wrap(..., exclude=[...])."
    )


@dataclass
class _Comparison:
    """Runs both models and notes what could be compared."""

    gated: Side
    compact: Side
    kept: Kept
    not_weights: Sequence[torch.Tensor]
    checked: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def run(self, cases: Sequence[Case], dtype: torch.dtype) -> Difference | None:
        """The largest differences over all cases; None if the gated model runs in none of them."""
        worst: Difference | None = None
        with (
            in_precision(self.gated, dtype, self.not_weights) as gated,
            in_precision(self.compact, dtype) as compact,
            Widely(dtype),
        ):
            for case in cases:
                inputs = case.inputs.map(partial(converted, dtype=dtype))
                # In single precision differences are rounding: they are measured, and judged as such.
                unexplained = TOLERANCE[dtype] if dtype is torch.float64 else math.inf
                result, done, why = compared(gated, compact, case, inputs, self.kept, unexplained)
                if why:
                    self.skipped.append(f"{case} in {_name(dtype)}: {why}")
                if result is not None:
                    worst = result if worst is None else worst.worst(result)
                    self.checked.extend([str(done)] if dtype is torch.float64 else [])
        return worst

    def is_narrow(self, cases: Sequence[Case]) -> bool:
        """Whether anything is computed in less than double precision where that is asked for.

        All cases are run again: to look at every operation takes its time, and few comparisons come to this.
        """
        narrows = Narrows()
        with (
            in_precision(self.gated, torch.float64, self.not_weights) as gated,
            in_precision(self.compact, torch.float64) as compact,
            Widely(torch.float64),
            narrows,
        ):
            for case in cases:
                inputs = case.inputs.map(partial(converted, dtype=torch.float64))
                compared(gated, compact, case, inputs, self.kept)
        return narrows.has_narrowed

    def rounding(self, case: Case) -> float:
        """What single precision does to the gated model's outputs, relative."""
        outputs = []
        for dtype in (torch.float32, torch.float64):
            with in_precision(self.gated, dtype, self.not_weights) as gated, Widely(dtype), put_aside(gated.model):
                try:
                    outputs.append(run(gated, case.inputs.map(partial(converted, dtype=dtype))).outputs)
                except Exception:  # noted already
                    return TOLERANCE[torch.float32]
        return gap(outputs[1], outputs[0]).max_rel


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
