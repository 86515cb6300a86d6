"""`wrap`: from a model to a gated model in one call."""

from __future__ import annotations

import fnmatch
import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from prunegate.compaction import DryRun, FixUps, modules_with_experts
from prunegate.errors import NothingToPruneError, TraceError
from prunegate.groups import Analysis, ExampleInputs, Pin, Trace, copy_with
from prunegate.modes import eval_mode
from prunegate.wrapping.gated_model import GatedModel
from prunegate.wrapping.outputs_that_count import places_that_count
from prunegate.wrapping.reach import Reach

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "module", "graph")
ATTENTION_UNITS = ("finest", "heads")


@torch.inference_mode(False)
def wrap(
    model: nn.Module,
    example_inputs: Any,
    exclude: str | Sequence[str] = (),
    round_to: int | Literal["auto"] = 1,
    backend: str = "auto",
    attention: str = "finest",
    outputs: Callable[[Any], Any] | Sequence[str] | None = None,
    other_calls: Sequence[Any] = (),
) -> GatedModel:
    """Find every channel group of ``model`` and put a learnable gate on each unit.

    The model is run once on tensors without data, so nothing is computed; it is not modified, as the gated model is a
    copy. Channels that compaction could not remove get no gate; `GatedModel.pinned` has the reasons.

    Args:
        model: Any module, with any weights, also on the meta device. If it comes from ``torch.compile``, the original
            module is wrapped.
        example_inputs: What the model is called with: a tensor, a tuple of positional arguments, or a
            dict of keyword arguments. Its leading size is taken as the batch size.
        exclude: One or several patterns (`fnmatch`) of channel group or tensor names that get no gate, e.g.
            ``"layer4.*"``.
        round_to: Kept counts become multiples of this when masks are hardened. Must be less than the number of units of
            the largest channel group. ``"auto"``: for each group the multiple that is fastest on this machine, which
            `prunegate.measure_latency` finds out.
        backend: How the compact model will be made. ``"module"`` keeps the model's class; modules within it whose code
            cannot run on smaller tensors are replayed from the traced run. ``"graph"`` makes a `torch.fx.GraphModule`.
            ``"auto"`` takes the graph only if it can remove more.
        attention: The units of attention layers. ``"heads"``: whole heads. ``"finest"``: head dimensions, the same in
            each head, if they outnumber the heads and the model's code allows it (a choice between few heads is
            coarse); otherwise whole heads. GPU kernels prefer widths that are multiples of 8: see ``round_to``.
        outputs: Which of the model's outputs count, if not all: their names (``"logits"``, or several), or a function
            that picks them, such as ``lambda out: out.logits``. The others are not preserved: hidden states that a
            model also returns may become narrower. `GatedModel.limits` lists them. The choice is made again of what
            the model returns in training mode; if it finds nothing there, all of that counts.
        other_calls: Further calls that the model will receive, each in the form of ``example_inputs``: with other
            arguments, or with sizes or masks that make its code take another branch. They are traced and compared like
            the example inputs. Code that none of these calls runs is not proved: see `GatedModel.limits`.

    Returns:
        The gated model, in the model's own train or eval mode.

    Raises:
        TraceError: The model does not run on the inputs, or is of a kind that cannot be pruned (such as TorchScript).
        NothingToPruneError: No channel is prunable.
    """
    if backend not in BACKENDS:
        raise TraceError(f"backend: found {backend!r}, expected one of {', '.join(BACKENDS)}.")
    if attention not in ATTENTION_UNITS:
        raise TraceError(f"attention: found {attention!r}, expected one of {', '.join(ATTENTION_UNITS)}.")
    if round_to != "auto" and (not isinstance(round_to, int) or isinstance(round_to, bool) or round_to < 1):
        raise TraceError(f"round_to: found {round_to!r}, expected a whole number of at least 1, or 'auto'.")
    patterns = _patterns(exclude)
    model = _module(model)
    inputs = _calls(example_inputs, other_calls)
    if not any(True for _ in model.parameters()):
        raise NothingToPruneError("the model: has no parameters, expected layers whose channels can be removed.")
    _refuse_elsewhere(model, inputs)
    if any(t.is_floating_point() and not t.is_meta and bool(torch.isnan(t).any()) for t in inputs.tensors()):
        raise TraceError(
            "example_inputs: found NaN, expected numbers. The compact model's outputs are compared on them. Pass a "
            "batch without NaN, or torch.zeros_like of this one."
        )
    if outputs is not None:
        inputs = inputs.that_count(places_that_count(model, inputs, outputs))
    trace = Trace(model, inputs)
    whole_heads = trace.attentions() if attention == "heads" else frozenset()
    analysis, refused = _without(trace, whole_heads, patterns)
    dry_run = _tried(model, inputs, trace, analysis, whole_heads, graph=backend == "graph")
    split = trace.split_heads(analysis, whole_heads)
    unsplit = {module for module, groups in split.items() if groups & dry_run.refused.keys()}
    if unsplit:  # heads whose code needs all dimensions may still be removed as wholes
        whole_heads |= unsplit
        analysis, refused = _without(trace, whole_heads, patterns)
        dry_run = _tried(model, inputs, trace, analysis, whole_heads, graph=backend == "graph")
    dry_run, *others = _best_first(dry_run, whole_heads) if backend == "auto" else (dry_run,)
    if dry_run.refused:
        analysis = trace.analysis({**refused, **dry_run.refused}, whole_heads)
    if not analysis.groups:
        _refuse_inputs_that_do_not_fit(model, inputs)
        raise NothingToPruneError(_nothing_left(analysis))
    largest = max(analysis.groups, key=lambda group: group.num_units)
    if round_to != "auto" and round_to > 1 and largest.num_units <= round_to:
        raise TraceError(
            f"round_to: found {round_to}, expected less than {largest.num_units}, the units of the largest channel "
            f"group ({largest.name}). Kept counts are multiples of it, so nothing could be removed. Use 8 or 16."
        )
    logger.info("%d channel groups with %d units, %d not prunable", len(analysis.groups), analysis.num_units,
                len(analysis.pinned))  # fmt: skip
    reach = {
        other.fix_ups.backend: Reach.of(
            trace.analysis({**refused, **other.refused}, whole_heads), 1 if round_to == "auto" else round_to
        )
        for other in others
    }
    return GatedModel(copy_with(model), trace, analysis, inputs, round_to, dry_run.fix_ups, reach)


def _calls(example_inputs: Any, other_calls: Any) -> ExampleInputs:
    inputs = ExampleInputs.of(example_inputs)
    if not isinstance(other_calls, (list, tuple)):
        raise TraceError(
            f"other_calls: found {type(other_calls).__name__}, expected a list of calls, each of them a tensor, a "
            "tuple of arguments or a dict of keyword arguments. Pass other_calls=[...]."
        )
    others = []
    for number, call in enumerate(other_calls):
        try:
            others.append(ExampleInputs.of(call))
        except TraceError as error:
            raise TraceError(f"other_calls[{number}]: {error}") from error
    return replace(inputs, others=tuple(others))


def _patterns(exclude: str | Sequence[str]) -> tuple[str, ...]:
    """The patterns as a tuple, also if there is only one."""
    if isinstance(exclude, str):
        return (exclude,)
    patterns = tuple(exclude) if isinstance(exclude, Iterable) else (exclude,)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TraceError(
                f"exclude: found {pattern!r}, expected the name of a channel group or of a tensor, or a list of such "
                "names, with * as wildcard. gated.groups lists the groups."
            )
    return patterns


def _module(model: nn.Module) -> nn.Module:
    """The module whose layers are to be replaced."""
    model = getattr(model, "_orig_mod", model)  # of torch.compile, whose class takes seconds to import
    if inspect.isclass(model):
        raise TraceError(
            f"model: found the class {model.__name__}, expected an instance of it. Call wrap({model.__name__}(...), "
            "inputs)."
        )
    if isinstance(model, DistributedDataParallel):
        raise TraceError(
            "model: found a DistributedDataParallel, expected the model inside it. It averages the gradients of the "
            "parameters that it was given, and gates add their own. Call gated = wrap(model.module, inputs), and then "
            "DistributedDataParallel(gated)."
        )
    if not isinstance(model, nn.Module):
        raise TraceError(f"model: found a {type(model).__name__}, expected a torch.nn.Module. Wrap its layers in one.")
    if isinstance(model, GatedModel):
        raise TraceError(
            "model: found a gated model, expected a plain one. It has gates already. Train those, or wrap "
            "gated.unwrap() to start over."
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise TraceError(
                f"{name}: found a tensor that has no shape yet, expected one with a size for every channel. A lazy "
                "layer learns its sizes from the first batch. Call model(batch) once before wrap."
            )
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TraceError(
                f"model: found TorchScript in {path or 'the model'}, expected modules of Python code. The sizes in its "
                "code are fixed. Wrap the model that it was made from, and convert the compact one instead."
            )
    return model


def _refuse_elsewhere(model: nn.Module, inputs: ExampleInputs) -> None:
    """Refuse inputs on another device: tracing without data would not notice, and only training would fail."""
    own = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    given = {tensor.device for tensor in inputs.tensors()}
    if own.isdisjoint(given) and "meta" not in {device.type for device in own | given}:
        raise TraceError(
            f"example_inputs: found tensors on {', '.join(sorted(map(str, given)))}, expected them on "
            f"{', '.join(sorted(map(str, own)))}, where the model is. Move the inputs to the model's device, or the "
            "model to theirs."
        )


def _refuse_inputs_that_do_not_fit(model: nn.Module, inputs: ExampleInputs) -> None:
    """Refuse inputs on which the model itself fails: then every cut seems to break it, and nothing is left to prune."""
    copied, inputs = copy_with(model), inputs.copied()
    try:
        with eval_mode(copied), torch.no_grad():
            copied(*inputs.args, **inputs.kwargs)
    except Exception as error:  # the model may raise anything
        shapes = ", ".join(f"{tuple(t.shape)} of {str(t.dtype).removeprefix('torch.')}" for t in inputs.tensors())
        raise TraceError(
            f"example_inputs: the model raises {type(error).__name__} on {shapes}: {error}. It has to run on the "
            "example inputs. Pass a small batch of what it was trained on."
        ) from error


def _without(trace: Trace, whole_heads: frozenset[str], exclude: Sequence[str]) -> tuple[Analysis, dict[str, Pin]]:
    """The channel groups without those that the user excludes, and the excluded ones."""
    analysis = trace.analysis(whole_heads=whole_heads)
    refused = _excluded(analysis, exclude)
    return (trace.analysis(refused, whole_heads) if refused else analysis), refused


def _tried(
    model: nn.Module, inputs: ExampleInputs, trace: Trace, analysis: Analysis, whole_heads: frozenset[str], graph: bool
) -> DryRun:
    # The kernel that multiplies the experts may not accept the widths that are kept.
    experts = () if graph else tuple(modules_with_experts(trace.tape))
    fix_ups = FixUps(graph, resized=experts, whole_heads=tuple(sorted(whole_heads)))
    dry_run = DryRun(model, inputs, trace, analysis, fix_ups)
    dry_run.run()
    return dry_run


def _best_first(dry_run: DryRun, whole_heads: frozenset[str]) -> tuple[DryRun, ...]:
    """The dry run of the module back-end and, if it refuses units, one of the graph back-end; the better one first."""
    if not dry_run.refused or not dry_run.trace.is_fake:
        return (dry_run,)
    graph = _tried(dry_run.model, dry_run.inputs, dry_run.trace, dry_run.analysis, whole_heads, graph=True)
    sizes = {group.name: group.num_units for group in dry_run.analysis.groups}
    lost, lost_by_graph = (sum(sizes[name] for name in one.refused) for one in (dry_run, graph))
    return (graph, dry_run) if lost_by_graph < lost else (dry_run, graph)


def _excluded(analysis: Analysis, patterns: Sequence[str]) -> dict[str, Pin]:
    """The groups that match a pattern, by their own name or by that of one of their tensors."""
    refused = {}
    for pattern in patterns:
        matched = [
            group.name
            for group in analysis.groups
            if any(fnmatch.fnmatchcase(name, pattern) for name in (group.name, *(m.tensor for m in group.members)))
        ]
        if not matched:
            known = ", ".join(group.name for group in analysis.groups[:5])
            raise TraceError(
                f"exclude: {pattern!r} matches no channel group. It has to be the name of a group or of one of its "
                f"tensors, with * as wildcard. Groups are: {known}, ..."
            )
        refused.update(dict.fromkeys(matched, Pin(f"excluded by the pattern {pattern!r}")))
    return refused


def _nothing_left(analysis: Analysis) -> str:
    reasons = "\n".join(f"  {p.name}: {p.num_units} channels. {p.reason}. {p.advice}" for p in analysis.pinned[:10])
    more = f"\n  and {len(analysis.pinned) - 10} more" if len(analysis.pinned) > 10 else ""
    listed = f" Not prunable:\n{reasons}{more}" if reasons else " No layer produces channels that another reads."
    return f"the model: no channel group can be pruned, expected at least one.{listed}"
