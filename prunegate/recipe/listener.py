"""What a run tells those who watch it, and what it came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prunegate.report import Comparison


class Listener(Protocol):
    """Who wants to see a run go by."""

    def stage_started(self, stage: str, epochs: int) -> None: ...
    def epoch_ended(self, record: Mapping[str, Any], dense_macs: int) -> None: ...
    def note(self, text: str) -> None: ...
    def finished(self, comparison: Comparison, certificate: Mapping[str, Any], folder: str) -> None: ...


@dataclass(frozen=True)
class RunSummary:
    """What a run came to."""

    folder: Path
    comparison: Comparison
    accuracy_after_hardening: float
    realised_macs: int
    dense_macs: int
