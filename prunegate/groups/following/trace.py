"""Run a model once, without arithmetic, and find its channel groups."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from torch import nn

from prunegate.errors import RuleError, TraceError
from prunegate.groups.analysis import Analysis
from prunegate.groups.following.failures import why_it_failed
from prunegate.groups.following.input_sizes import Variation, other_sizes
from prunegate.groups.following.inputs import ExampleInputs
from prunegate.groups.following.lines_run import LinesRun
from prunegate.groups.following.outputs import Form, forms_of, names_of_state, tensors_in
from prunegate.groups.following.own_training import OwnTraining, own_training
from prunegate.groups.following.running import no_collection, run_watched, running_unfollowed, stored_tensors
from prunegate.groups.following.size_calls import OF_LAYERS
from prunegate.groups.following.tape import Source, Tape
from prunegate.groups.following.tracer import Tracer
from prunegate.groups.following.untaken import UntakenBranch, untaken_branches
from prunegate.groups.following.values import Values
from prunegate.groups.following.watch import Watch
from prunegate.groups.rules import FUNCTION_RULES, module_rule
from prunegate.groups.solving.choices import usual
from prunegate.groups.solving.constraints import Constraints, Pin
from prunegate.groups.solving.solve import solve
from prunegate.groups.solving.united import united_by, ways_of
from prunegate.groups.torch_workarounds.copies import copy_with, the_same
from prunegate.groups.torch_workarounds.draws import Dropped
from prunegate.groups.torch_workarounds.fake_tensors import KINDS, FakeTensors, Kind

logger = logging.getLogger(__name__)

# Modules whose attention loses whole heads; None for all of them.
WholeHeads: TypeAlias = "frozenset[str] | None"


@dataclass(frozen=True)
class Run:
    """One traced run.

    Attributes:
        variation: How its inputs differed from the example inputs.
        training: Whether the model was in training mode.
    """

    tape: Tape
    variation: Variation
    training: bool


class Trace:
    """The constraints of one model's runs; `analysis` can be called repeatedly as groups are refused.

    Attributes:
        runs: The traced runs; the first is on the example inputs in eval mode.
        not_followed: Other runs that could not be traced, and why.
        untaken: Calls that mix channels in branches that no run took.
    """

    def __init__(self, model: nn.Module, inputs: ExampleInputs) -> None:
        """Trace the channels of ``model`` through a run on ``inputs``.

        The run uses a copy whose tensors hold no data: nothing is computed, no weights are needed and the model is not
        modified. If a shape depends on values, the run is repeated with real tensors. If the model's code handles
        sizes, or behaves differently in training, it is also traced at other sizes and in training mode: a removal has
        to be correct in all of these runs.

        Raises:
            TraceError: The model does not run on these inputs.
        """
        self._batch_size = inputs.batch_size()
        self._state = names_of_state(model)
        self._again: tuple[Tape | None] | None = None
        self._chosen: dict[WholeHeads, list[int]] = {}
        self.runs: list[Run] = []
        self.not_followed: tuple[tuple[str, str], ...] = ()
        self.untaken: tuple[UntakenBranch, ...] = ()
        on_meta: dict[str, Any] = {}
        for kind in KINDS:
            self.constraints = Constraints()
            self._values = Values(self.constraints)
            self.runs, self.not_followed = [], ()
            self._lines, self._ran, self._returned = LinesRun(), set[str](), frozenset[Form]()
            self._fake_tensors = FakeTensors(kind)
            try:
                with no_collection(unless=kind == "real"):
                    self._follow(model, inputs)
            except TraceError as reason:
                # Kernels without data may be stricter than real ones, which decide.
                if kind == "real" or isinstance(reason, RuleError):
                    raise
                logger.info("following the run on %s tensors failed: %s", kind, reason)
                if on_meta:
                    break
            else:
                if on_meta and len(self.not_followed) < len(on_meta["not_followed"]):
                    on_meta = {}
                if on_meta or not (kind == "meta" and (self.tape.lacks_literals() or self.not_followed)):
                    break
                # Other runs may need tensors with a device; if they do not, this is faster.
                on_meta = {} if self.tape.lacks_literals() else dict(vars(self))
        vars(self).update(on_meta)
        for run in self.runs:
            run.tape.close()
        self._united = united_by(self.constraints)
        self._used = self._values.used
        del self._values  # it keeps every tensor of the run alive

    @property
    def is_fake(self) -> bool:
        """Whether the run used no data."""
        return self._fake_tensors.kind != "real"

    def __deepcopy__(self, memo: dict[int, Any]) -> Trace:
        """Return the same object, as it is immutable."""
        return self

    @property
    def kind(self) -> Kind:
        """The kind of fake tensors."""
        return self._fake_tensors.kind

    @property
    def tape(self) -> Tape:
        """The run on the example inputs in eval mode."""
        return self.runs[0].tape

    def _follow(self, model: nn.Module, inputs: ExampleInputs) -> None:
        copied = self._fake_tensors.of_model(model)
        self._parameters, self._shapes = [], {}
        for kind, name, tensor in stored_tensors(copied):
            if kind == "parameter":
                self._parameters.append(name)
            self._shapes[name] = tuple(tensor.shape)
            self._values.add_leaf(tensor, kind, name)
        # State that a run leaves in the model must not reach the next run.
        self._run(copy_with(copied, the_same), inputs, Variation(), training=False)
        training = own_training(
            copied, inputs, self._lines.functions, self._returned, self._fake_tensors, self.tape, self._ran
        )
        self.untaken = untaken_branches(copied, self._ran, self._lines)
        if self._handles_sizes() or self._unused() or any(training) or self.untaken:
            self._follow_variations(copied, inputs, training)
        for number in range(len(inputs.others)):
            self._follow_other(copied, inputs, number)
        if self.untaken:
            self.untaken = untaken_branches(copied, self._ran, self._lines)

    def _follow_other(self, copied: nn.Module, inputs: ExampleInputs, number: int) -> None:
        """Follow another call that the user gave, as it is and at another size."""
        known = set(self.tape.sized)
        try:
            self._run(copy_with(copied, the_same), inputs, Variation(other=number), training=False)
        except RuleError:
            raise
        except TraceError as error:
            raise TraceError(f"other_calls[{number}]: {error}") from error
        doubled = Variation(doubled=True, other=number)
        if not known.issuperset(self.runs[-1].tape.sized):
            sizes = [replace(v, doubled=True, other=number) for v in other_sizes(inputs.others[number])]
            self._tried(copied, inputs, [*sizes, doubled], training=False)
        own = own_training(copied, inputs.others[number], self._lines.functions, self._returned, self._fake_tensors)
        if any(own) and self._tried(copied, inputs, [doubled, Variation(other=number)], training=True) is None:
            self.not_followed += ((f"training mode at other_calls[{number}]", self._reason),)

    def _follow_variations(self, copied: nn.Module, inputs: ExampleInputs, own: OwnTraining) -> None:
        """Follow a run at another size, and one in training mode, as far as the model makes them."""
        known, other = set(self.tape.sized), None
        sizes = [*(replace(v, doubled=True) for v in other_sizes(inputs)), Variation(doubled=True)]
        if self._handles_sizes() or self.untaken:
            other = self._tried(copied, inputs, sizes, training=False)
            if other is None:
                self.not_followed += (("another number of samples", self._reason),)
        if own.does_more or self._unused():
            # Heads that only training runs read channels too; what they ask for must hold as well.
            trained = self._tried(copied, inputs, [Variation(doubled=True)], training=True)
            if trained is None:
                self.not_followed += (("training mode", self._reason),)
            if trained is not None and not known.issuperset(self.runs[-1].tape.sized):
                taken = sizes[:-1] if other is None else [other]
                # BatchNorm may reject a single sample.
                self._tried(copied, inputs, [v for t in taken for v in (replace(t, doubled=False), t)], training=True)
        if own.skips:
            # Channels on both sides of what is dropped at random go together.
            ways: tuple[Dropped, ...] = ("even", "odd")
            if not all(self._tried(copied, inputs, [Variation(True, dropped=way)], training=True) for way in ways):
                self.not_followed += (("training mode with layers dropped", self._reason),)

    def _tried(
        self, model: nn.Module, inputs: ExampleInputs, variations: Sequence[Variation], training: bool
    ) -> Variation | None:
        """Trace the first of several other runs that the model supports."""
        for variation in variations:
            mark, used = self.constraints.mark(), set(self._values.used)
            try:
                if variation.layout is not None:
                    self._check(copy_with(model, the_same), variation.of(inputs), training)
                self._run(copy_with(model, the_same), inputs, variation, training)
            except RuleError:
                raise
            except TraceError as reason:
                logger.info("%s, training %s, could not be followed: %s", variation, training, reason)
                self._reason = str(reason)
                self.constraints.back_to(mark)
                self._values.used = used
            else:
                return variation
        return None

    def _check(self, model: nn.Module, inputs: ExampleInputs, training: bool) -> None:
        """Check that torch's real kernels accept these sizes, as tracing checks less."""
        inputs = inputs.map(self._fake_tensors.of)
        try:
            with running_unfollowed(self._fake_tensors, "none" if training else None):
                model.train(training)(*inputs.args, **inputs.kwargs)
        except Exception as error:  # a foreign forward may raise anything
            raise TraceError(f"the model does not accept them: {type(error).__name__}: {error}") from error

    def _handles_sizes(self) -> bool:
        """Whether the model's code passes sizes to functions that are not layers."""
        return any(call.function not in OF_LAYERS for call in self.tape.sized.values())

    def _run(self, model: nn.Module, inputs: ExampleInputs, variation: Variation, training: bool) -> None:
        tape = Tape()
        for _, name, tensor in stored_tensors(model):
            tape.add(tensor, self._values.labels(tensor), Source("stored", name))
        watch = Watch(tape, module_rule, FUNCTION_RULES)
        watch.lines = self._lines
        costs = len(self.constraints.contractions)
        if training and variation.dropped is None:
            variation = replace(variation, dropped="none")
        inputs = variation.of(inputs).map(self._fake_tensors.of)
        for tensor in inputs.tensors():
            self._values.set(tensor, ())
            tape.add(tensor, (), Source("input"))
        try:
            watched = run_watched(model.train(training), watch, self._fake_tensors, variation.dropped)
            with watched, Tracer(self._values, watch, tape):
                outputs = model(*inputs.args, **inputs.kwargs)
        except RuleError:  # a failure in a user's rule is not the model's
            raise
        except Exception as error:
            raise TraceError(why_it_failed(watch.module or "the model", error)) from error
        self._ran |= watch.ran
        for key, count in watch.totals.items():
            self.constraints.totals[key] = max(self.constraints.totals.get(key, 0), count)
        self._pin_outputs(outputs, inputs.outputs)
        if not training:
            self._returned |= forms_of(outputs, self._state)
        if self.runs:  # costs are those of the example inputs
            del self.constraints.contractions[costs:]
        self.runs.append(Run(tape, variation, training))

    def _pin_outputs(self, outputs: Any, places: Collection[str] | None) -> None:
        result = tensors_in(outputs, self._state, places)
        if not result:
            raise TraceError(
                "model output: found no tensor, expected at least one. Otherwise nothing can be compared or "
                "trained. Return tensors, or containers of them."
            )
        self._values.use(result)
        for tensor in result:
            for label in self._values.labels(tensor):
                self.constraints.pin(label, Pin("part of the model's output"))

    def _unused(self) -> list[str]:
        used = self._values.used if hasattr(self, "_values") else self._used
        return [name for name in self._parameters if name not in used]

    def with_more_samples(self, model: nn.Module, inputs: ExampleInputs) -> Tape | None:
        """The tape of the same run with every sample twice, to identify sizes that depend on the batch.

        None if this run fails or has other operations; every size is then treated as fixed.
        """
        if self._again is None:
            self._again = (self._follow_again(model, inputs.doubled()) if self.is_fake else None,)
        return self._again[0]

    def _follow_again(self, model: nn.Module, inputs: ExampleInputs) -> Tape | None:
        fake_tensors, tape = FakeTensors(self._fake_tensors.kind), Tape()
        copied = fake_tensors.of_model(model).eval()
        for _, _, tensor in stored_tensors(copied):
            tape.add(tensor)
        inputs = inputs.map(fake_tensors.of)
        for tensor in inputs.tensors():
            tape.add(tensor)
        watch = Watch(tape, module_rule, FUNCTION_RULES)
        try:
            with run_watched(copied, watch, fake_tensors), Tracer(None, watch, tape):
                copied(*inputs.args, **inputs.kwargs)
        except Exception as reason:  # a foreign forward may raise anything
            logger.info("the run with more samples failed: %s", reason)
            return None
        same = len(tape.shapes) == len(self.tape.shapes) and [o.func for o in tape.operations] == [
            o.func for o in self.tape.operations
        ]
        return tape if same and len(tape.spans) == len(self.tape.spans) else None

    def attentions(self) -> frozenset[str]:
        """Modules whose attention can lose whole heads or head dimensions."""
        return frozenset(choice.module for choice in self.constraints.choices if choice.kind == "heads")

    def split_heads(self, analysis: Analysis, whole_heads: WholeHeads = frozenset()) -> dict[str, set[str]]:
        """Modules whose attention loses head dimensions, with the names of the groups that hold these.

        There is no group if something else in the model prevents it.
        """
        starts = [group.first_unit for group in analysis.groups]
        results: dict[str, set[str]] = {}
        for choice, number in zip(self.constraints.choices, self._ways(whole_heads), strict=True):
            places = choice.ways[number].places
            if places is not None:
                units = analysis.units_of[places]
                holding = np.searchsorted(starts, units[units >= 0], side="right") - 1
                results.setdefault(choice.module, set()).update(analysis.groups[number].name for number in holding)
        return results

    def analysis(
        self, refused: Mapping[str, Pin] | None = None, whole_heads: WholeHeads = frozenset(), finest: bool = True
    ) -> Analysis:
        """Channel groups.

        Args:
            refused: Groups that are left out, by name.
            whole_heads: Modules whose attention loses whole heads, even if there are more head dimensions; None for
                all.
            finest: Whether units are chosen for the whole network; False for the choice of each operation separately,
                as in files up to format 1.1.
        """
        refused = refused or {}
        with no_collection():
            ways = self._ways(whole_heads) if finest else usual(self.constraints, whole_heads)
            return solve(
                self.constraints, self._shapes, self._parameters, self._batch_size, self._unused(), refused, ways,
                self._united,
            )  # fmt: skip

    def _ways(self, whole_heads: WholeHeads) -> list[int]:
        if whole_heads not in self._chosen:
            self._chosen[whole_heads] = ways_of(self.constraints, self._united, whole_heads)
        return self._chosen[whole_heads]
