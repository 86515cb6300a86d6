"""Annealing tau: a pure function of progress, and a thin stepper around it."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from prunegate.errors import BudgetError
from prunegate.numbers import is_number
from prunegate.wrapping import GatedModel, gated_model

Schedule = Literal["exponential", "linear", "constant"]


def tau_at(progress: float, start: float, end: float, schedule: Schedule = "exponential") -> float:
    """Tau after a fraction ``progress`` in [0, 1] of the schedule; exact at both ends.

    Exponential annealing follows Jang et al. 2017, arXiv:1611.01144, section 4.
    """
    if progress <= 0 or schedule == "constant":
        return start
    if progress >= 1:
        return end
    if schedule == "linear":
        return start + (end - start) * progress
    return float(start * (end / start) ** progress)


class TauSchedule:
    """Lowers a gated model's tau a little at every step.

    Args:
        gated: The gated model; its ``tau`` is set now and after each `step`.
        start: Tau before the first step, > 0.
        end: Tau from step ``steps`` on, in (0, start].
        steps: Length of the schedule in optimisation steps.

    Raises:
        BudgetError: Values outside these ranges.
    """

    def __init__(
        self,
        gated: GatedModel,
        start: float = 2.0,
        end: float = 0.1,
        steps: int = 1000,
        schedule: Schedule = "exponential",
    ) -> None:
        if isinstance(gated, nn.Module):
            gated = gated_model(gated, "TauSchedule")
        if not (is_number(start) and is_number(end) and 0 < end <= start):
            raise BudgetError(
                f"tau: found start {start!r} and end {end!r}, expected 0 < end <= start. Masks are divided by tau, "
                "and annealing lowers it. For example, start at 2.0 and end at 0.1."
            )
        if not is_number(steps) or steps < 1:
            raise BudgetError(f"tau: found {steps!r} steps, expected at least 1.")
        if schedule not in ("exponential", "linear", "constant"):
            raise BudgetError(f"tau: found schedule {schedule!r}, expected exponential, linear or constant.")
        self._gated, self.start, self.end, self.steps, self.schedule = gated, start, end, steps, schedule
        self.count = 0
        self._set()

    def step(self) -> None:
        """Advance by one optimisation step."""
        self.count += 1
        self._set()

    def __repr__(self) -> str:
        return (
            f"TauSchedule({self.start:g} to {self.end:g}, {self.schedule}, step {self.count} of {self.steps}, tau "
            f"{self._gated.tau:.3g})"
        )

    def _set(self) -> None:
        self._gated.tau = tau_at(self.count / self.steps, self.start, self.end, self.schedule)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = int(state["count"])
        self._set()
