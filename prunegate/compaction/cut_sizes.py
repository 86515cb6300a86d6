"""The kept positions of every tensor of a run, and the sizes that depend on the batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prunegate.compaction.plan import Mask
from prunegate.groups import Analysis, ExampleInputs, Tape, Trace
from prunegate.groups.following.input_sizes import Variation
from prunegate.groups.solving.kept_positions import KeptByDim, kept_positions
from prunegate.groups.solving.labels import Shape
from prunegate.groups.torch_workarounds.fake_tensors import Kind


@dataclass
class CutSizes:
    """The tape's tensors after removing the units not in ``keep``.

    Attributes:
        tape: The run on the example inputs.
        again: The same run with more samples, to identify sizes that depend on the batch; None if it differs.
        keep: Which units are kept, shape (units,).
        is_fixed: All sizes follow from the inputs' shapes; False if some depend on values.
        variation: How the run's inputs differed from the example inputs.
        training: Whether the model was in training mode.
    """

    tape: Tape
    again: Tape | None
    analysis: Analysis
    keep: Mask
    is_fixed: bool = True
    variation: Variation = field(default_factory=Variation)
    training: bool = False
    _known: dict[int, KeptByDim] = field(default_factory=dict)

    def kept(self, number: int) -> KeptByDim:
        """For each dimension of a tensor, the kept positions, or None if all are kept."""
        result = self._known.get(number)
        if result is None:
            result = self._known[number] = self._find(number)
        return result

    def _find(self, number: int) -> KeptByDim:
        return kept_positions(self.tape.shapes[number], self.tape.labels[number], self.analysis.units_of, self.keep)

    def shape(self, number: int) -> Shape:
        """The tensor's shape after the cut, at the traced batch."""
        sizes = self.tape.shapes[number]
        return tuple(
            size if mask is None else int(mask.sum()) for size, mask in zip(sizes, self.kept(number), strict=True)
        )

    def is_cut(self, number: int) -> bool:
        return any(mask is not None for mask in self.kept(number))

    def follows_batch(self, number: int) -> tuple[bool, ...]:
        """For each dimension of a tensor, whether its size depends on the number of samples."""
        shape = self.tape.shapes[number]
        if self.again is None:
            return (False,) * len(shape)
        return tuple(a != b for a, b in zip(shape, self.again.shapes[number], strict=True))


@dataclass
class CutRuns:
    """All traced runs after removing the units that a mask drops.

    Attributes:
        runs: The first is the run on the example inputs in eval mode.
        kind: The kind of fake tensors.
        learned: Cache of learned rules: see `prunegate.compaction.learning`.
    """

    runs: tuple[CutSizes, ...]
    inputs: ExampleInputs
    kind: Kind
    learned: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, trace: Trace, analysis: Analysis, keep: Mask, inputs: ExampleInputs, again: Tape | None = None
    ) -> CutRuns:
        """The runs of a trace.

        Args:
            again: See `CutSizes`; for the first run.
        """
        runs = tuple(
            CutSizes(
                run.tape, again if number == 0 else None, analysis, keep, trace.is_fake, run.variation, run.training
            )
            for number, run in enumerate(trace.runs)
        )
        return cls(runs, inputs, trace.kind)

    def at_given_sizes(self) -> tuple[CutSizes, ...]:
        """The runs in eval mode that differ from the first only in the number of samples."""
        varied = (run.variation.layout is not None or run.variation.other is not None for run in self.runs)
        return tuple(run for run, other in zip(self.runs, varied, strict=True) if not other and not run.training)

    @property
    def main(self) -> CutSizes:
        """The run on the example inputs in eval mode."""
        return self.runs[0]
