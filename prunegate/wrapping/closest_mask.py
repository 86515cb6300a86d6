"""The hard mask that comes closest to some budgets, and what is said if there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from prunegate.compaction.plan import Mask
from prunegate.costs import COUNTS, Cost, amount, keep_within
from prunegate.errors import BudgetError, DivergedError
from prunegate.numbers import is_number

if TYPE_CHECKING:
    from prunegate.wrapping.gated_model import GatedModel


class HasLimit(Protocol):
    """The part of a budget that `GatedModel.harden` needs."""

    @property
    def metric(self) -> str: ...

    def limit_for(self, dense_cost: float) -> float: ...


class MeasuresLatency(Protocol):
    """The part of `prunegate.latency.Latency` that a gated model needs."""

    @property
    def cost(self) -> Cost: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def blocks(self) -> list[int]: ...

    def meet(self, propose: Callable[[float], Mask | None], limit: float) -> Mask | None: ...


def closest_mask(gated: GatedModel, budgets: Sequence[HasLimit | tuple[str, float]]) -> Mask:
    """The mask that `GatedModel.harden` fixes; see there."""
    if not budgets:
        raise BudgetError("harden: no budget was given, expected one or more. Call harden(Budget('macs', 0.5)).")
    limits = [_limit_of(gated, budget) for budget in budgets]
    logits = gated.gates.logits.detach().double().cpu().numpy()
    if not np.isfinite(logits).all():
        raise DivergedError(
            "harden: found logits that are not finite, expected numbers. They decide which units are removed. The "
            "loss was not finite in some step. Go back to an earlier state, and look for NaN in the data or the "
            "weights."
        )
    if gated.round_to == "auto" and gated.latency is None:
        raise BudgetError(
            "round_to: 'auto' keeps the multiples of units that run fastest here, which has not been measured. Call "
            "prunegate.measure_latency(gated) first, or wrap with a number such as 8."
        )
    counted = [(metric, limit) for metric, limit in limits if metric != "latency_ms"]
    timed = min((limit for metric, limit in limits if metric == "latency_ms"), default=None)
    within = proposals(gated, counted, logits)
    keep = within(None) if timed is None else gated.measured_latency().meet(within, timed)
    if keep is None:
        metric, limit = next((one for one in limits if one[1] < gated.least_cost(one[0])), limits[0])
        raise BudgetError(unreachable(gated, metric, limit))
    return keep


def proposals(
    gated: GatedModel, limits: Sequence[tuple[str, float]], preference: npt.NDArray[np.float64]
) -> Callable[[float | None], Mask | None]:
    """A function from predicted milliseconds (None for any) to the mask that keeps the preferred units within them.

    Args:
        limits: Further metrics with their limits.
        preference: Shape (units,); higher values are kept longer.
    """
    costs = [(gated.cost(metric), limit) for metric, limit in limits]
    units, steps, least = [group.units for group in gated.groups], gated.steps(), [g.least for g in gated.groups]
    allowed = gated.gates.open_units().cpu().numpy()

    def within(milliseconds: float | None) -> Mask | None:
        timed = [] if milliseconds is None else [(gated.cost("latency_ms"), milliseconds)]
        return keep_within([*costs, *timed], preference, units, steps, allowed, least)

    return within


def _limit_of(gated: GatedModel, budget: HasLimit | tuple[str, float]) -> tuple[str, float]:
    """The metric and the absolute limit of one budget."""
    if not isinstance(budget, tuple) and hasattr(budget, "limit_for") and hasattr(budget, "metric"):
        return budget.metric, budget.limit_for(gated.dense_cost(budget.metric))
    if isinstance(budget, tuple) and len(budget) == 2 and isinstance(budget[0], str) and is_number(budget[1]):
        metric, limit = budget
        if 0 < limit <= 1 and metric in COUNTS:
            raise BudgetError(
                f"harden: found {limit} {metric}, expected an absolute limit such as "
                f"{amount(gated.dense_cost(metric), metric)}, the dense cost. For a share of it, call "
                f"harden(Budget({metric!r}, {limit}))."
            )
        return metric, limit
    share = f"{budget}" if is_number(budget) and 0 < budget <= 1 else "0.5"
    raise BudgetError(
        f"harden: found {budget!r}, expected a Budget, or a metric and its absolute limit. Call "
        f"harden(Budget('macs', {share}))."
    )


def unreachable(gated: GatedModel, metric: str, limit: float) -> str:
    """The message for a budget below what the gates can reach."""
    dense, least = gated.dense_cost(metric), gated.least_cost(metric)
    told, of_dense, lowest = (amount(value, metric) for value in (limit, dense, least))
    fewest = "A block" if gated.round_to == "auto" else f"At least {gated.round_to} unit(s)"
    return (
        f"budget: found {told} {metric} ({limit / dense:.4f} of the dense {of_dense}), expected at least {lowest} "
        f"({least / dense:.4f}). {fewest} of each channel group and all channels that are not prunable are kept. Raise "
        "the fraction, or see gated.explain() for what is not prunable."
    )
