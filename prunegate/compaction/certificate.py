"""A certificate: the measured difference between the outputs of the compact and the gated model."""

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

# Largest relative difference, max|compact − gated| / max|gated|, that `compact` accepts.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}


@dataclass(frozen=True)
class Certificate:
    """What was compared, and the differences.

    Attributes:
        float64: Differences with both models in double precision, over everything in `checked`: the proof of
            losslessness. None for a model that does not run in double precision.
        float32: Differences in single precision, on the example inputs only: the effect of rounding.
        checked: What was compared: mode, size of the inputs, gradients.
        not_checked: What could not be compared, with the reason.
        limits: Conditions outside of which nothing is proved, known since the model was wrapped.
    """

    float64: Difference | None
    float32: Difference
    checked: tuple[str, ...] = ()
    not_checked: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data; null stands for outputs of a different form."""
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
    """Run both models in all cases in double precision, and in the first case also in single precision.

    Args:
        gated: Has to run under fixed masks, also in training mode.
        kept: The kept positions of the gated model's parameters.
        not_weights: Tensors of the gated model whose precision does not matter (logits).
        decides_by_value: The model ranks or selects by computed values, as detectors do. Rounding in single precision
            may then change the selection, so this difference is measured but not judged.

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
            f"compaction: the gated model no longer runs on the example inputs: {comparison.skipped[-1]}. "
            "Nothing can be compared. Call wrap() with inputs that it accepts."
        )

    def noise() -> float:
        return comparison.rounding(cases[0]) if single is not None else 0.0

    if double is not None and not double.max_rel <= TOLERANCE[torch.float64]:
        if not (double.max_rel <= ROUNDINGS * noise() and comparison.is_narrow(cases)):
            raise CompactionError(_differs(double, torch.float64, TOLERANCE[torch.float64]))
        comparison.skipped.append(
            f"double precision: the model's code computes in single precision, so equality is proved to "
            f"{double.max_rel:.1g}"
        )
    if single is not None and not decides_by_value and not single.max_rel <= TOLERANCE[torch.float32]:
        allowed = max(TOLERANCE[torch.float32], ROUNDINGS * noise())
        if not single.max_rel <= allowed:
            raise CompactionError(_differs(single, torch.float32, allowed))
    if single is None:
        single = Difference(math.inf, math.inf)
    return Certificate(double, single, tuple(comparison.checked), tuple(comparison.skipped))


def _differs(difference: Difference, dtype: torch.dtype, allowed: float) -> str:
    return (
        f"compaction: the compact model differs from the gated one by {difference.max_rel:.2g} "
        f"(relative, {str(dtype).removeprefix('torch.')}), expected at most {allowed:.0e}. "
        "No compact model is returned that computes something else. Please report the model. Until then, "
        "exclude the channel groups of its unusual layers with wrap(..., exclude=[...])."
    )


@dataclass
class _Comparison:
    """Runs both models and records what could be compared."""

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
                # In single precision, differences come from rounding, so they are not explained further.
                unexplained = TOLERANCE[dtype] if dtype is torch.float64 else math.inf
                result, done, why = compared(gated, compact, case, inputs, self.kept, unexplained)
                if why:
                    self.skipped.append(f"{case} in {_name(dtype)}: {why}")
                if result is not None:
                    worst = result if worst is None else worst.worst(result)
                    self.checked.extend([str(done)] if dtype is torch.float64 else [])
        return worst

    def is_narrow(self, cases: Sequence[Case]) -> bool:
        """Whether anything is computed in less than double precision although double is requested.

        All cases are run again, as watching every operation is slow and few comparisons need it.
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
        """Relative change of the gated model's outputs in single precision."""
        outputs = []
        for dtype in (torch.float32, torch.float64):
            with in_precision(self.gated, dtype, self.not_weights) as gated, Widely(dtype), put_aside(gated.model):
                try:
                    outputs.append(run(gated, case.inputs.map(partial(converted, dtype=dtype))).outputs)
                except Exception:  # already recorded
                    return TOLERANCE[torch.float32]
        return gap(outputs[1], outputs[0]).max_rel


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
