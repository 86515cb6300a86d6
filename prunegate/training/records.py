"""The record of an epoch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class EpochRecord:
    """One line of ``metrics.jsonl``. The same seed gives the same record, so it contains no times.

    Costs are MACs per sample; those of the dense stage are the dense ones.
    """

    stage: str
    epoch: int
    step: int
    loss: float
    accuracy: float
    learning_rate: float
    tau: float | None = None
    expected_macs: float | None = None
    realised_macs: int | None = None
    target_macs: float | None = None
    sampled_macs: int | None = None
    multiplier: float | None = None
    undecided_share: float | None = None
    flipped_share: float | None = None
    collapsed_groups: int | None = None
    # Only with a budget of milliseconds.
    expected_latency_ms: float | None = None
    realised_latency_ms: float | None = None

    def as_dict(self) -> dict[str, Any]:
        fields = asdict(self)
        if self.expected_latency_ms is None:
            del fields["expected_latency_ms"], fields["realised_latency_ms"]
        return fields
