"""Gate health: figures that show whether hardening will hurt the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from prunegate.training.plans import GateTraining
from prunegate.wrapping import GatedModel

# Keep probabilities between these are undecided.
_DECIDED = (0.1, 0.9)
# Shares of units, and of the target, above which there is a warning at the end of the stage.
_MUCH_UNDECIDED = 0.25
_MANY_FLIPS = 0.1
_FAR_OFF = 0.1


@dataclass(frozen=True)
class GateHealth:
    """The state of all gates after an epoch. Costs are in units of ``metric`` (MACs per sample or parameters).

    Attributes:
        undecided_share: Share of units whose keep probability is between 0.1 and 0.9.
        flipped_share: Share of units whose hard mask differs from the last measurement; None at first.
        collapsed: Channel groups of which the hard mask keeps a single unit.
        sampled: Cost of one drawn mask.
        expected: Cost at the keep probabilities.
        realised: Cost of the hard mask.
        target: The budget's current target.
    """

    metric: str
    undecided_share: float
    flipped_share: float | None
    collapsed: tuple[str, ...]
    sampled: float
    expected: float
    realised: float
    target: float

    @classmethod
    @torch.no_grad()
    def of(cls, gated: GatedModel, metric: str, target: float, before: torch.Tensor | None = None) -> GateHealth:
        """Measure the gates of ``gated``; ``before`` is the hard mask of the last measurement. Consumes no noise."""
        probability = torch.sigmoid(gated.gates.logits.float())
        hard = gated.gates.hard_mask()
        undecided = (probability > _DECIDED[0]) & (probability < _DECIDED[1])
        flipped = None if before is None else float((hard != before).float().mean())
        collapsed = tuple(name for name, mask in gated.masks().items() if int(mask.sum()) == 1)
        return cls(
            metric,
            float(undecided.float().mean()),
            flipped,
            collapsed,
            gated.sampled_cost(metric),
            float(gated.expected_cost(metric)),
            gated.realised_cost(metric),
            target,
        )

    def warnings(self) -> list[str]:
        """Problems at the end of the gate stage, each with what to do about it."""
        results = []
        if self.undecided_share > _MUCH_UNDECIDED:
            results.append(
                f"gates: {self.undecided_share:.0%} of the units are undecided at the end, expected at most "
                f"{_MUCH_UNDECIDED:.0%}. Hardening will decide them. Raise stages.gate.epochs or gates.learning_rate."
            )
        if self.flipped_share is not None and self.flipped_share > _MANY_FLIPS:
            results.append(
                f"gates: {self.flipped_share:.0%} of the mask entries flipped in the last epoch, expected at most "
                f"{_MANY_FLIPS:.0%}. Raise stages.gate.epochs, or lower stages.gate.target_ramp so that the target "
                "is reached sooner."
            )
        if abs(self.expected - self.target) > _FAR_OFF * self.target:
            results.append(
                f"gates: the expected {self.metric} are {self.expected / self.target:.2f} of the target at the end, "
                f"expected within {_FAR_OFF:.0%}. Hardening will close the gap at once. Raise stages.gate.epochs "
                "or lower stages.gate.target_ramp."
            )
        if self.collapsed:
            count = len(self.collapsed)
            keeps = "channel group keeps" if count == 1 else "channel groups keep"
            shown = ", ".join(self.collapsed[:3]) + (", ..." if len(self.collapsed) > 3 else "")
            results.append(
                f"gates: {count} {keeps} a single unit ({shown}). Hardly any information "
                "passes through. Raise budget.fraction, or list them under gates.exclude."
            )
        return results


def gate_figures(gated: GatedModel, gates: GateTraining, health: GateHealth) -> dict[str, Any]:
    """Additional figures for the record of a gate epoch: costs in MACs per sample, whatever the budget's metric."""
    in_macs = gates.budget.metric == "macs"
    return {
        "tau": gated.tau,
        "expected_macs": float(gated.expected_cost("macs").detach()),
        "realised_macs": gated.realised_cost("macs"),
        "sampled_macs": gated.sampled_cost("macs"),
        "target_macs": health.target if in_macs else None,
        "multiplier": gates.budget.multiplier,
        "undecided_share": health.undecided_share,
        "flipped_share": health.flipped_share,
        "collapsed_groups": len(health.collapsed),
        **_milliseconds(gated, gates),
    }


def _milliseconds(gated: GatedModel, gates: GateTraining) -> dict[str, float]:
    if not any(budget.metric == "latency_ms" for budget in gates.budgets):
        return {}
    return {
        "expected_latency_ms": float(gated.expected_cost("latency_ms").detach()),
        "realised_latency_ms": gated.realised_cost("latency_ms"),
    }
