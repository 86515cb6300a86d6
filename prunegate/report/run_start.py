"""What a run says of itself before it trains."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunStart:
    """The head of a run.

    Attributes:
        name: Of the recipe.
        facts: What is said, by what it is about: ``("device", "cpu, 2 threads")``.
        stages: The stages that are still to be trained, in order, each with its epochs.
    """

    name: str
    facts: tuple[tuple[str, str], ...]
    stages: tuple[tuple[str, int], ...]
