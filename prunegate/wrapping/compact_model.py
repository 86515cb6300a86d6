"""`compact`: from a gated model to a smaller model of the same class."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunegate import checkpoint
from prunegate.builders import Builder
from prunegate.compaction import (
    Certificate,
    CutRuns,
    FixUps,
    Mask,
    Plan,
    Side,
    attribute_edits,
    cases_of,
    certify,
    cut,
    feature_edits,
    fix_up,
    limits_of,
    outputs_of,
    put_aside,
    set_attributes,
    settle,
    shape_fault_of,
)
from prunegate.errors import CheckpointError, CompactionError, TraceError
from prunegate.groups import ExampleInputs, copy_with, in_place_of, on_meta
from prunegate.identify import identify
from prunegate.modes import eval_mode
from prunegate.wrapping.compactable import refuse_uncompactable
from prunegate.wrapping.gated_model import GatedModel
from prunegate.wrapping.require import gated_model


@dataclass
class Compaction:
    """The result of `compact`.

    Attributes:
        model: The compact model, without gates: of the original class (replayed modules get a subclass of their own
            class), or a `torch.fx.GraphModule` from the graph back-end.
        plan: What was removed.
        certificate: How close it is to the gated model, measured before `compact` returned.
        backend: The back-end that made it.
        costs: Dense and compact MACs per sample and parameters.
        fix_ups: Which modules are replayed.
    """

    model: nn.Module
    plan: Plan
    certificate: Certificate
    backend: str
    costs: dict[str, dict[str, int]]
    fix_ups: FixUps
    _origin: checkpoint.Origin = field(repr=False)
    _example_inputs: ExampleInputs = field(repr=False)

    def __repr__(self) -> str:
        certificate = self.certificate
        differs = certificate.float64 or certificate.float32
        shares = (
            f"{metric} {costs['compact'] / costs['dense'] if costs['dense'] else 1.0:.3f} of dense"
            for metric, costs in self.costs.items()
        )
        return (
            f"Compaction of a {type(self.model).__name__}, by the {self.backend} back-end:\n  {self.plan!r}\n"
            f"  {', '.join(shares)}; differs from the gated model by {differs.max_rel:.1e} (relative)\n"
            "  .model is the compact model; .summary() has details, .save(path) writes it"
        )

    def summary(self) -> str:
        """A few lines: what was kept, the cost before and after, the measured differences, and the limits."""
        kept = sum(len(units) for units in self.plan.kept.values())
        total = sum(self.plan.num_units.values())
        lines = [f"{kept:,} of {total:,} units kept in {len(self.plan.kept)} channel groups"]
        for metric, costs in self.costs.items():
            share = costs["compact"] / costs["dense"] if costs["dense"] else 1.0
            lines.append(f"{metric}: {costs['dense']:,} -> {costs['compact']:,} ({share:.3f})")
        for name, result in (("float64", self.certificate.float64), ("float32", self.certificate.float32)):
            if result is not None and math.isfinite(result.max_rel):
                lines.append(f"largest relative difference to the gated model, {name}: {result.max_rel:.1e}")
        lines += [f"compared: {', '.join(self.certificate.checked)}"] if self.certificate.checked else []
        lines += [f"not compared: {line}" for line in self.certificate.not_checked]
        lines += [f"limit: {line}" for line in self.certificate.limits]
        return "\n".join(lines)

    def save(
        self,
        path: str | os.PathLike[str],
        builder: Builder | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the current weights of `model`, with everything needed to load them, to one safetensors file.

        Args:
            builder: How the dense model is built; identified for timm and torchvision models if not given.
            extra: JSON-ready data to store with the model. Under ``data``, recipes store how pixels become inputs and
                the class names (``mean``, ``deviation``, ``largest_pixel``, ``class_names``); exports copy it.
        """
        origin = self._origin
        given = builder is not None or origin.builder is not None
        builder = builder or origin.builder
        if builder is None and origin.skeleton is not None:
            builder = identify(origin.skeleton)
        document = checkpoint.Document(
            builder=builder,
            class_name=origin.class_name,
            steps=origin.steps,
            certificate=self.certificate.as_dict(),
            fingerprint=self._fingerprint(),
            costs={
                metric: {"dense": origin.dense_costs.get(metric, costs["dense"]), "compact": costs["compact"]}
                for metric, costs in self.costs.items()
            },
            extra=dict(extra or {}),
        )
        checkpoint.save(path, self.model, document)
        if builder is None or given:
            return
        if self._loaded_back(Path(path), document) is None:
            # The same structure with different outputs: an argument that does not show in the structure.
            checkpoint.save(path, self.model, document.without_builder())

    def _fingerprint(self) -> checkpoint.Fingerprint | None:
        try:
            return checkpoint.Fingerprint.of(self.model, self._example_inputs)
        except TraceError:  # inputs without a plain form
            return None

    def _loaded_back(self, path: Path, document: checkpoint.Document) -> nn.Module | None:
        """The model loaded from the file without a dense model, if its outputs equal those of `model` bit for bit."""
        first = next(iter(self.model.parameters()))
        # The weights may have been moved or converted since.
        inputs = self._example_inputs.map(lambda t: t.to(first.device, first.dtype if t.is_floating_point() else None))
        with eval_mode(self.model):
            expected = outputs_of(self.model, inputs)
        try:
            loaded = checkpoint.load(path)
        except CheckpointError:
            try:
                loaded = checkpoint.load(path, verify=True)
            except CheckpointError:
                return None
            # Attributes were set that make no difference here. The loaded model will not have them.
            checkpoint.save(path, self.model, document, loaded)
        actual = outputs_of(loaded.to(first.device), inputs)
        same = len(expected) == len(actual) and all(torch.equal(a, b) for a, b in zip(expected, actual, strict=True))
        return loaded if same else None


@torch.inference_mode(False)
def compact(gated: GatedModel) -> Compaction:
    """Physically remove the units that the fixed masks drop.

    Args:
        gated: A gated model with fixed masks, from `GatedModel.harden`, `GateSteps.finish` or `GatedModel.set_masks`.

    Raises:
        NotGatedError: ``gated`` is not a gated model.
        MaskError: Masks are not fixed, but drawn from the logits.
        CompactionError: Weights are NaN or on the meta device, or the outputs of the compact model would differ from
            those of the gated model.
    """
    gated = gated_model(gated, "compact")
    refuse_uncompactable(gated)
    keep = gated.gates.hard_mask().cpu().numpy()
    try:
        return _compact(gated, keep, *_fix_ups_for(gated, keep, gated.fix_ups))
    except CompactionError:
        # An attribute may have equalled a size by chance in the dry run. Replaying does not rely on such guesses.
        safer = gated.fix_ups.without_attributes()
        if safer == gated.fix_ups:
            raise
    return _compact(gated, keep, *_fix_ups_for(gated, keep, safer))


@torch.inference_mode(False)
def candidate(gated: GatedModel, keep: Mask) -> nn.Module:
    """The compact model of a mask, with the gated model's weights and nothing proved: for measuring it.

    Args:
        keep: Which units are kept, shape (units,).

    Raises:
        CompactionError: The model's code cannot run on the remaining channels.
    """
    fix_ups, runs = _fix_ups_for(gated, keep, gated.fix_ups)
    dense = gated.dense_copy(share_weights=True).eval()
    skeleton = copy_with(dense, on_meta)
    shared = {id(tensor) for tensor in (*dense.parameters(), *dense.buffers())}
    cut(dense, Plan.of(gated.analysis, keep))
    dense = copy_with(dense, lambda tensor: _own(tensor) if id(tensor) in shared else tensor)
    model = fix_up(dense, runs, fix_ups)
    set_attributes(model, feature_edits(skeleton, model, gated.example_inputs))
    return model


def _compact(gated: GatedModel, keep: Mask, fix_ups: FixUps, runs: CutRuns) -> Compaction:
    # The copy shares the gated model's weights until they are cut, so a second full set never exists.
    dense = gated.dense_copy(share_weights=True)
    training = {path: module.training for path, module in dense.named_modules()}
    dense.eval()  # in training mode, reading a computed weight (spectral norm) may change buffers
    skeleton = copy_with(dense, on_meta)
    shared = {id(tensor) for tensor in (*dense.parameters(), *dense.buffers())}
    plan = cut(dense, Plan.of(gated.analysis, keep))
    dense = copy_with(dense, lambda tensor: _own(tensor) if id(tensor) in shared else tensor)
    model = fix_up(dense, runs, fix_ups)
    plan = plan.with_attributes(attribute_edits(runs.main, fix_ups.attributes))
    told = feature_edits(skeleton, model, gated.example_inputs)
    set_attributes(model, told)
    plan = plan.with_attributes(told)
    for path, module in model.named_modules():
        module.training = training.get(path, module.training)
    certificate = _certified(gated, model, plan, fix_ups)
    costs = {
        metric: {"dense": int(gated.dense_cost(metric)), "compact": int(gated.realised_cost(metric))}
        for metric in ("macs", "params")
    }
    origin = _origin(skeleton, plan, fix_ups, gated.example_inputs, costs)
    checkpoint.set_origin(model, origin)
    return Compaction(model, plan, certificate, gated.backend, costs, fix_ups, origin, gated.example_inputs)


def _certified(gated: GatedModel, model: nn.Module, plan: Plan, fix_ups: FixUps) -> Certificate:
    gates = [*gated.gates.parameters(), *gated.gates.buffers()]
    runs = gated.trace.runs
    cases = cases_of(gated.example_inputs, [] if fix_ups.replays else [run.variation for run in runs])
    with put_aside(gated.gates):
        gated.set_masks(gated.masks())  # otherwise they would be drawn in training mode
        sides = Side(gated, gated.model), Side.of(model)
        result = certify(*sides, cases, plan.tensors, gates, decides_by_value=not gated.trace.is_fake)
    return dataclasses.replace(result, limits=tuple(map(str, limits_of(fix_ups, gated.trace, gated.example_inputs))))


def _origin(
    skeleton: nn.Module, plan: Plan, fix_ups: FixUps, inputs: ExampleInputs, costs: Mapping[str, Mapping[str, int]]
) -> checkpoint.Origin:
    """The origin of the compact model: the dense model, or that model's own origin if it was already compact."""
    try:
        form = inputs.describe()
    except TraceError:
        if not fix_ups.is_plain:
            raise
        form = None
    step = checkpoint.Step(plan, fix_ups, form)
    before = checkpoint.origin_of(skeleton)
    if before is not None:
        return dataclasses.replace(before, steps=(*before.steps, step))
    class_name = f"{type(skeleton).__module__}.{type(skeleton).__qualname__}"
    dense_costs = {metric: cost["dense"] for metric, cost in costs.items()}
    return checkpoint.Origin((step,), class_name, None, skeleton, dense_costs)


def _runs(gated: GatedModel, keep: Mask, fix_ups: FixUps) -> CutRuns:
    model = gated.dense_copy(share_weights=True)
    again = gated.trace.with_more_samples(model, gated.example_inputs) if fix_ups.replays else None
    return CutRuns.of(gated.trace, gated.analysis, keep, gated.example_inputs, again)


def _fix_ups_for(gated: GatedModel, keep: Mask, fix_ups: FixUps) -> tuple[FixUps, CutRuns]:
    """The fix-ups that these masks need, as code may fail for some sizes only, and the runs that show it.

    Raises:
        CompactionError: No fix-up works.
    """
    model = gated.dense_copy(share_weights=True)

    known: dict[bool, CutRuns] = {}

    def runs_for(fix_ups: FixUps) -> CutRuns:
        if fix_ups.replays not in known:
            known[fix_ups.replays] = _runs(gated, keep, fix_ups)
        return known[fix_ups.replays]

    fix_ups, fault = settle(
        fix_ups, model, runs_for(fix_ups).main, lambda fix_ups: shape_fault_of(model, runs_for(fix_ups), fix_ups)
    )
    if fault is not None:
        raise CompactionError(
            f"compaction: {fault.module or 'the model'}: {fault.error}. Its code cannot run on the remaining channels, "
            "although the dry run in wrap() passed with other masks. Exclude the channel groups that it reads with "
            "wrap(..., exclude=[...]), or keep other units."
        )
    return fix_ups, runs_for(fix_ups)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    return in_place_of(tensor, tensor.detach().clone())
