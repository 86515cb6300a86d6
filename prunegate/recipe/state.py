"""The state of a run between two steps: all that it takes to go on bit for bit."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

VERSION = 2


@dataclass(frozen=True)
class RunState:
    """Where a run is and what it holds; plain values and tensors only.

    Attributes:
        stage: ``"dense"``, ``"gate"`` or ``"finetune"``.
        budget: Index of the budget whose gate or finetune stage it is; 0 in the dense stage.
        step: Optimisation steps of all stages up to here.
        epochs_done: Epochs of all stages that have ended.
        fit: State of the stage's `Fit`.
        models: State dicts: of ``dense`` while that is trained, of ``gated`` afterwards, and of the ``compact``
            model while that is finetuned.
        records: Lines of ``metrics.jsonl`` so far.
        outcomes: What earlier budgets came to.
        hardened: Accuracy after hardening, in the finetune stage.
        processes: For each process its random states.
    """

    ORDER: ClassVar[tuple[str, ...]] = ("dense", "gate", "finetune")

    stage: str
    budget: int
    step: int
    epochs_done: int
    fit: dict[str, Any]
    models: dict[str, dict[str, Any]]
    records: list[dict[str, Any]]
    outcomes: list[dict[str, Any]]
    hardened: float | None
    processes: list[dict[str, Any]]

    @property
    def place(self) -> tuple[int, int]:
        """Budget and stage, which sort as they follow each other."""
        return place(self.stage, self.budget)

    def as_dict(self) -> dict[str, Any]:
        return {"version": VERSION, **{field.name: getattr(self, field.name) for field in fields(self)}}

    @classmethod
    def from_dict(cls, result: Any) -> RunState:
        """The inverse of `as_dict`.

        Raises:
            ValueError: Something else, or of another version.
        """
        version = result.get("version") if isinstance(result, dict) else None
        if version != VERSION:
            raise ValueError(f"found version {version} of a run's state, expected {VERSION}")
        names = [field.name for field in fields(cls)]
        if missing := [name for name in names if name not in result]:
            raise ValueError(f"has no {', '.join(missing)}")
        return cls(**{name: result[name] for name in names})


def place(stage: str, budget: int) -> tuple[int, int]:
    return budget, RunState.ORDER.index(stage)


@dataclass(frozen=True)
class Outcome:
    """What one budget came to: a compact model, in a file by now.

    Attributes:
        fraction: Of the dense cost that the budget allowed.
        hardened: Accuracy before finetuning.
        accuracy: Accuracy after it.
        costs: Dense and compact cost by metric.
        certificate: Largest differences to the gated model.
        kept: Units kept in each channel group.
    """

    fraction: float
    hardened: float
    accuracy: float
    costs: dict[str, Any]
    certificate: dict[str, Any]
    kept: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
