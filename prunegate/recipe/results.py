"""The results of a run: compact models, summary and report figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from prunegate.builders import Builder
from prunegate.data import Meaning
from prunegate.own_code import OwnBuilder
from prunegate.recipe import folder as files
from prunegate.recipe.folder import RunFolder
from prunegate.recipe.listener import Listener, RunSummary
from prunegate.recipe.schema import Recipe
from prunegate.recipe.state import Outcome
from prunegate.report import Comparison, KeptLayer, draw_report, metric_name, metric_text
from prunegate.wrapping import Compaction


@dataclass(frozen=True)
class Results:
    """Writes the results of a recipe to the run's folder."""

    recipe: Recipe
    out: RunFolder
    builder: Builder | OwnBuilder
    listener: Listener
    meaning: Meaning = field(default_factory=Meaning)

    def save(self, result: Compaction, outcome: Outcome) -> None:
        """Write one budget's compact model."""
        if not self.out.writes:
            return
        budget = self.recipe.budget
        smallest = budget.limit is not None or outcome.fraction == budget.fractions[-1]
        name = files.CHECKPOINT if smallest else files.checkpoint_of(outcome.fraction)
        extra = {"recipe": self.recipe.name, "budget": self._asked(outcome), self._metric: outcome.accuracy}
        if known := self.meaning.as_dict():
            extra["data"] = {"name": self.recipe.data.name, **known}
        # A checkpoint never names the user's own code: such a model has to be passed when the file is loaded.
        builder = self.builder if isinstance(self.builder, Builder) else None
        result.save(self.out.file(name), builder=builder, extra=extra)

    def finish(
        self,
        dense: nn.Module,
        dense_accuracy: float,
        result: Compaction,
        outcomes: Sequence[Outcome],
        records: Sequence[Mapping[str, Any]],
        groups: Mapping[str, int],
        shape: tuple[int, ...],
    ) -> RunSummary:
        """Write and report the summary and the figure, both for the smallest model.

        Args:
            result: The smallest model.
            groups: Units of every channel group.
            shape: Shape of one sample.
        """
        *larger, last = outcomes
        comparison = Comparison.measure(
            dense, result.model, (dense_accuracy, last.accuracy), shape, metric=self._metric
        )
        layers = [KeptLayer(name, last.kept[name], count) for name, count in groups.items()]
        dense_macs, compact_macs = last.costs["macs"]["dense"], last.costs["macs"]["compact"]
        share = comparison.compact.macs / dense_macs
        title = f"{self.recipe.name}: {self.builder.full_name}, {share:.1%} of the MACs"
        if self.out.writes:
            loss = _loss_name(self.recipe)
            draw_report(self.out.file(files.REPORT), title, records, layers, dense_macs, loss, self._metric)
        for outcome in larger:
            costs = outcome.costs["macs"]
            self.listener.note(
                f"{files.checkpoint_of(outcome.fraction)}: {costs['compact'] / costs['dense']:.4f} of the MACs, "
                f"{self._metric} {metric_text(outcome.accuracy, self._metric)}"
            )
        if slow := comparison.not_faster():
            self.listener.note(f"not faster: {slow}")
        self.listener.finished(comparison, last.certificate, str(self.out.path))
        # The last file; it marks the run as finished.
        self.out.write(files.SUMMARY, json.dumps(self._summary(comparison, larger, last), indent=2))
        return RunSummary(self.out.path, comparison, last.hardened, compact_macs, dense_macs)

    @property
    def _metric(self) -> str:
        return metric_name(self.recipe.training.metric)

    def _asked(self, outcome: Outcome) -> dict[str, Any]:
        """The budget of one model, in the form of the recipe."""
        budget = self.recipe.budget
        amount = {"fraction": outcome.fraction} if budget.limit is None else {"limit": budget.limit}
        return {"metric": budget.metric, **amount}

    def _summary(self, comparison: Comparison, larger: Sequence[Outcome], last: Outcome) -> dict[str, Any]:
        return {
            "recipe": self.recipe.name,
            "budget": self._asked(last),
            "accuracy_after_hardening": last.hardened,
            "comparison": comparison.as_dict(),
            "certificate": last.certificate,
            **({"latency_ms": last.costs["latency_ms"]} if "latency_ms" in last.costs else {}),
            "larger": [
                {
                    "file": files.checkpoint_of(outcome.fraction),
                    "fraction": outcome.fraction,
                    "accuracy_after_hardening": outcome.hardened,
                    "accuracy": outcome.accuracy,
                    "costs": outcome.costs,
                    "certificate": outcome.certificate,
                }
                for outcome in larger
            ],
        }


def _loss_name(recipe: Recipe) -> str:
    """The title for the curve of the training loss."""
    name = recipe.training.loss or "cross entropy"
    return f"{name}, with distillation" if recipe.distillation.weight else name
