"""What a run shows before it trains."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunStart:
    """The header of a run.

    Attributes:
        name: Name of the recipe.
        facts: Pairs of label and text, such as ``("device", "cpu, 2 threads")``.
        stages: The stages still to be trained, in order, each with its epochs.
    """

    name: str
    facts: tuple[tuple[str, str], ...]
    stages: tuple[tuple[str, int], ...]
