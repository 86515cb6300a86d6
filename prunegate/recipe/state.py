"""The state of a run between two steps: everything needed to resume it bit for bit."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

VERSION = 2


@dataclass(frozen=True)
class RunState:
    """The position of a run and its state, as plain values and tensors.

    Attributes:
        stage: ``"dense"``, ``"gate"`` or ``"finetune"``.
        budget: Index of the budget in the gate or finetune stage; 0 in the dense stage.
        step: Optimisation steps of all stages so far.
        epochs_done: Finished epochs of all stages.
        fit: State of the stage's `Fit`.
        models: State dicts: ``dense`` in the dense stage, ``gated`` afterwards, and also ``compact`` in the finetune
            stage.
        records: Lines of ``metrics.jsonl`` so far.
        outcomes: Results of earlier budgets.
        hardened: Accuracy after hardening, in the finetune stage.
        processes: Random states of each process.
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
        """Budget and stage, which sort in the order of the run."""
        return place(self.stage, self.budget)

    def as_dict(self) -> dict[str, Any]:
        return {"version": VERSION, **{field.name: getattr(self, field.name) for field in fields(self)}}

    @classmethod
    def from_dict(cls, data: Any) -> RunState:
        """The inverse of `as_dict`.

        Raises:
            ValueError: It is something else, or has another version.
        """
        version = data.get("version") if isinstance(data, dict) else None
        if version != VERSION:
            raise ValueError(f"found version {version} of a run's state, expected {VERSION}")
        names = [field.name for field in fields(cls)]
        if missing := [name for name in names if name not in data]:
            raise ValueError(f"has no {', '.join(missing)}")
        return cls(**{name: data[name] for name in names})


def place(stage: str, budget: int) -> tuple[int, int]:
    return budget, RunState.ORDER.index(stage)


@dataclass(frozen=True)
class Outcome:
    """The result of one budget, whose compact model is already saved.

    Attributes:
        fraction: Fraction of the dense cost that the budget allowed.
        hardened: Accuracy before finetuning.
        accuracy: Accuracy after finetuning.
        costs: Dense and compact cost by metric.
        certificate: Largest differences from the gated model.
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
