"""The compactions that led from a dense model to a compact one, as plain data that can be applied again."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from torch import nn

from prunegate.compaction import FixUps, Plan, Rebuilt, rebuild_checked
from prunegate.errors import CheckpointError, CompactionError
from prunegate.groups import ExampleInputs, copy_with, the_same


@dataclass(frozen=True)
class Step:
    """One compaction.

    Attributes:
        plan: What was removed.
        fix_ups: Which modules are replayed.
        inputs: Form of the example inputs, on which the dense model is traced again; None if it has no plain form.
    """

    plan: Plan
    fix_ups: FixUps
    inputs: Any = None

    def apply(self, model: nn.Module) -> Rebuilt:
        """Repeat the compaction in place, and compare it with a fresh analysis.

        Raises:
            CompactionError: the plan or the fix-ups do not fit the model.
            ValueError: The form of the inputs is invalid.
        """
        inputs = None if self.inputs is None else ExampleInputs.of_form(self.inputs)
        return rebuild_checked(model, self.plan, self.fix_ups, inputs)

    def as_dict(self) -> dict[str, Any]:
        return {
            "plan": self.plan.as_dict(),
            # Attention that lost whole heads is listed even if nothing is replayed.
            "mending": None if self.fix_ups.is_plain and not self.fix_ups.whole_heads else self.fix_ups.as_dict(),
            "inputs": self.inputs,
        }

    @classmethod
    def from_dict(cls, data: Any, where: str) -> Step:
        """Read what `as_dict` wrote, trusting nothing.

        Raises:
            ValueError: Naming the field that is not as expected.
        """
        if not isinstance(data, dict):
            raise ValueError(f"{where}: found {type(data).__name__}, expected an object")
        try:
            fix_ups, inputs = FixUps.from_dict(data.get("mending")), data.get("inputs")
            if inputs is not None or not fix_ups.is_plain:
                ExampleInputs.of_form(inputs)
            return cls(Plan.from_dict(data.get("plan")), fix_ups, inputs)
        except ValueError as error:
            raise ValueError(f"{where}.{error}") from error


@dataclass(frozen=True)
class StoredPlan:
    """The plans of a checkpoint's compactions, to apply them to another dense model of the same architecture.

    Attributes:
        steps: First to last.
        source: Where it was read from, for messages.
    """

    steps: tuple[Step, ...]
    source: str = ""

    def apply(self, dense: nn.Module) -> nn.Module:
        """The compact model with the weights of ``dense``, which is not modified.

        Raises:
            CheckpointError: The plan was made for another architecture.
        """
        return self.apply_in_place(copy_with(dense, the_same))

    def apply_in_place(self, model: nn.Module) -> nn.Module:
        """Cut ``model`` itself; tensors shared with other models are replaced, not modified.

        Raises:
            CheckpointError: The plan was made for another architecture.
        """
        return self.made_again(model).model

    def made_again(self, model: nn.Module) -> Rebuilt:
        """Like `apply_in_place`, but also report how far the result is proved correct.

        Raises:
            CheckpointError: The plan was made for another architecture.
        """
        made = Rebuilt(model, True, False)
        for number, step in enumerate(self.steps):
            try:
                one = step.apply(made.model)
            except (CompactionError, ValueError) as error:
                raise CheckpointError(f"{self.source}: steps[{number}].plan: {error}") from error
            made = Rebuilt(one.model, made.is_followed and one.is_followed, made.has_guesses or one.has_guesses)
        return made


def load_plan(path: str | os.PathLike[str]) -> StoredPlan:
    """The plan of a checkpoint, without its weights.

    Use it to apply the same cut to another dense checkpoint of the same architecture: ``load_plan(path).apply(dense)``.

    Raises:
        CheckpointError: The file is damaged, or no prunegate checkpoint.
    """
    from prunegate.checkpoint.files import read_document

    return StoredPlan(read_document(path).steps, str(path))
