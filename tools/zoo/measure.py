"""How far losslessness reaches for one model of a package, how much can go, and what Torch-Pruning makes of it."""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import prunegate
from prunegate.compaction import TOLERANCE, Side, Widely, put_aside
from prunegate.compaction.cases import Case, compared
from prunegate.compaction.equivalence import difference, run
from prunegate.compaction.precision import converted, in_precision
from prunegate.errors import CompactionError, PrunegateError
from prunegate.groups import ExampleInputs
from zoo.counting import places_that_count
from zoo.packages import PackageCase, case_of
from zoo.peer import pruned
from zoo.sampling import finite, masks_of, pinned_of, revision
from zoo.table import holds_sizes

if TYPE_CHECKING:
    from zoo.child import Report

TRACED_BATCH, OTHER_BATCH = 2, 3
# The first is the one whose costs are reported and which is compared in training as well.
DENSITIES = (0.5, 0.25, 0.75)
PEER_RATIO = 0.5
# How a note begins that puts a difference down to rounding.
ROUNDING = "rounding alone"
# A difference above this shows nothing, even if rounding explains it.
HIDES = 1e-3
PEER_SECONDS = 30
_NOISE = 0.03


def measure(name: str, report: Report) -> None:
    """Wrap, and at each density cut and compare; then let the peer prune the same model."""
    case = case_of(name)
    report.row["revision"] = revision()
    model = _built(case)
    report.row["params"] = sum(parameter.numel() for parameter in model.parameters())
    try:
        status, message = _ours(case, model, report)
    except Exception as error:  # whatever goes wrong is the result
        status = "crash" if not isinstance(error, PrunegateError) else _refusal(report.row["stage"])
        message = f"{report.row['stage']}: {type(error).__name__}: {error}"
    report.row["peer"] = {"status": "crash", "message": "it ended the process or took too long"}
    report.end(status, message)
    gc.collect()
    with _at_most(PEER_SECONDS):
        inputs, outputs = case.inputs(TRACED_BATCH, case.size), report.row.get("outputs")
        report.row["peer"] = pruned(_built(case), inputs, PEER_RATIO, case.selects, outputs)
    report.stage("done")


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in what runs longer."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _refusal(stage: str) -> str:
    """What `wrap` refuses is its right; what it accepted is to be cut."""
    return "refused" if stage == "wrap" else "not delivered"


def _built(case: PackageCase) -> nn.Module:
    """The model with noise on all that it is made with, so that every branch shows, also those that start at zero."""
    torch.manual_seed(0)
    model = case.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and not isinstance(parameter, nn.parameter.UninitializedParameter):
                parameter.add_(torch.randn_like(parameter) * _NOISE)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(torch.randn_like(buffer) * 0.1)
            elif name.endswith("running_var"):
                buffer.mul_(torch.rand_like(buffer) + 0.5)
    return model


def _ours(case: PackageCase, model: nn.Module, report: Report) -> tuple[str, str]:
    row = report.row
    cls = type(model)
    report.stage("run")
    outputs = places_that_count(model, case.inputs(TRACED_BATCH, case.size))
    if outputs is not None:
        row["outputs"] = outputs
        report.stage("wrap, preserving all outputs")
        row["removed_all_outputs"] = _share_without(case, model)
    report.stage("wrap")
    start = time.perf_counter()
    gated = prunegate.wrap(model, case.inputs(TRACED_BATCH, case.size), outputs=outputs)
    row["wrap_s"] = round(time.perf_counter() - start, 2)
    row |= {"groups": len(gated.groups), "units": sum(group.num_units for group in gated.groups)}
    row |= {"pinned": pinned_of(gated.pinned), "limits": [str(limit) for limit in gated.limits]}
    dtype, shows = _precision(gated, case)
    row |= {"dtype": str(dtype).removeprefix("torch."), "differences": {}, "notes": {}}
    for density in DENSITIES:
        gated.set_masks(masks_of(gated.groups, density))
        row.setdefault("removed", _removed(gated))
        report.stage(f"compact, keeping {density}")
        result = prunegate.compact(gated)
        row["backend"] = result.backend
        row["same_class"] = row.get("same_class", True) and type(result.model) is cls
        row["not_checked"] = list(result.certificate.not_checked)
        report.stage(f"compare, keeping {density}")
        with _both(gated, result.model, dtype) as sides:
            for place, inputs in _places(case, density, dtype):
                _compare(sides, place, _that_count(inputs, gated), result.plan.tensors, row)
        del result
        gc.collect()
    return _verdict(row, TOLERANCE[dtype]) if shows else ("vacuous", "the outputs are the same everywhere")


def _share_without(case: PackageCase, model: nn.Module) -> float:
    """What could be removed if every output counted."""
    gated = prunegate.wrap(model, case.inputs(TRACED_BATCH, case.size))
    gated.set_masks(masks_of(gated.groups, DENSITIES[0]))
    return _removed(gated)


def _removed(gated: prunegate.GatedModel) -> float:
    return round(1 - gated.realised_cost("macs") / gated.dense_cost("macs"), 4)


def _that_count(inputs: ExampleInputs, gated: prunegate.GatedModel) -> ExampleInputs:
    """Inputs of a run of which those outputs are compared that `wrap` was told to preserve."""
    outputs = gated.example_inputs.outputs
    return inputs if outputs is None else inputs.that_count(outputs)


def _precision(gated: prunegate.GatedModel, case: PackageCase) -> tuple[torch.dtype, bool]:
    """Double, or single for a model that does not run in double; and whether its outputs vary, so that they show."""
    for dtype in (torch.float64, torch.float32):
        try:
            with _both(gated, gated, dtype) as (side, _), put_aside(side.model):
                inputs = _typed(case.inputs(TRACED_BATCH, case.size), dtype)
                found = run(side, _that_count(inputs, gated))
            break
        except Exception:  # a foreign forward may raise anything
            continue
    else:
        return torch.float32, False
    return dtype, any(bool((tensor != tensor.flatten()[0]).any()) for tensor in found.outputs if tensor.numel())


@contextmanager
def _both(gated: prunegate.GatedModel, compact: nn.Module, dtype: torch.dtype) -> Iterator[tuple[Side, Side]]:
    """Both models in a precision."""
    other = Side.of(compact) if compact is not gated else Side(gated, gated.model)
    logits = list(gated.gates.parameters())
    with (
        in_precision(Side(gated, gated.model), dtype, logits) as first,
        in_precision(other, dtype, logits) as second,
        Widely(dtype),
    ):
        yield first, second


def _typed(inputs: Any, dtype: torch.dtype) -> ExampleInputs:
    return ExampleInputs.of(inputs).map(partial(converted, dtype=dtype))


def _places(case: PackageCase, density: float, dtype: torch.dtype) -> Iterator[tuple[Case, ExampleInputs]]:
    """Where the models are compared: on new samples; at one density at other batches and sizes and in training too."""
    places = [("traced", TRACED_BATCH, case.size, False)]
    if density == DENSITIES[0]:
        places += [("batch", OTHER_BATCH, case.size, False), ("training", TRACED_BATCH, case.size, True)]
    if density == DENSITIES[0] and case.other is not None:
        places += [("size", TRACED_BATCH, case.other, False), ("training, size", OTHER_BATCH, case.other, True)]
    for name, batch, size, training in places:
        torch.manual_seed(batch)
        inputs = _typed(case.inputs(batch, size), dtype)
        yield Case(name, inputs, training, training), inputs


def _compare(sides: tuple[Side, Side], place: Case, inputs: ExampleInputs, kept: Any, row: dict[str, Any]) -> None:
    """Note the largest difference, or what stands in the way of one."""
    differences, notes = row["differences"], row["notes"]
    try:
        found, _, why = compared(*sides, place, inputs, kept, TOLERANCE[getattr(torch, row["dtype"])])
    except CompactionError as error:  # it does not run where the dense model does
        differences[place.name] = None
        notes[place.name] = f"refuses: {error.__cause__ or error}"[:300]
        return
    if why.startswith(ROUNDING):  # so large it may be, but how large it is says more
        with put_aside(*(side.model for side in sides)):
            one, other = (run(side, inputs, place.training, place.gradients) for side in sides)
        found = difference(one, other, kept)
    if why:
        notes.setdefault(place.name, why[:200])
    if found is not None and differences.get(place.name, 0.0) is not None:
        differences[place.name] = finite(max(found.max_rel, differences.get(place.name, 0.0)))
        if differences[place.name] is None:
            notes[place.name] = "outputs of another form"


def _verdict(row: dict[str, Any], tolerance: float) -> tuple[str, str]:
    """One word for what was seen: wrong, limited (it refuses somewhere, or says that it may) or exact."""
    notes = row["notes"]
    wrong = [
        place
        for place, value in row["differences"].items()
        if (value is None and not notes[place].startswith("refuses"))
        or (value is not None and not value <= tolerance and not notes.get(place, "").startswith(ROUNDING))
    ]
    refused = [place for place, value in row["differences"].items() if value is None and place not in wrong]
    hidden = [p for p, value in row["differences"].items() if p not in wrong and value is not None and value > HIDES]
    if wrong:
        return "wrong", f"at: {', '.join(wrong)}"
    if hidden:
        return "vacuous", f"rounding hides it at: {', '.join(hidden)}"
    if refused or holds_sizes(row["limits"]):
        return "limited", "; ".join(f"{place}: {notes[place]}" for place in refused)
    return ("exact", "") if row["differences"] else ("vacuous", "nothing could be compared")
