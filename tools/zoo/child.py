"""One model, in a process of its own: what is found is printed as JSON lines, the last of which counts."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

from zoo.exact import TOLERANCE, Apart, RefusedError, apart, run, tensors_of
from zoo.models import Case, build
from zoo.sampling import finite, masks_of, pinned_of, revision

TRACED_BATCH = 2
# Share of the units of every group that stays, and the number of samples it is compared on. The first is the
# one whose costs are reported.
CHECKS = ((0.5, 3), (0.25, 1), (0.75, 3))
# Outputs above this come from weights that explode rather than show anything.
_TOO_LARGE = 1e6
_COMPACT_REFUSES = "the compact model refuses"


class Report:
    """The row of one model, printed anew at each stage so that a time-out leaves what was found."""

    def __init__(self, model: str, out: TextIO) -> None:
        self.row: dict[str, Any] = {"model": model}
        self._out = out
        self._start = time.perf_counter()

    def stage(self, name: str) -> None:
        self.row["stage"] = name
        self._print()

    def end(self, status: str, message: str = "") -> None:
        self.row["status"] = status
        if message:
            self.row["message"] = " ".join(message.split())[:400]
        self.row["seconds"] = round(time.perf_counter() - self._start, 1)
        self.row["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        self._print()

    def _print(self) -> None:
        print(json.dumps(self.row), file=self._out, flush=True)


def run_child(kind: str, name: str) -> int:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.manual_seed(0)
    _volunteer_for_the_oom_killer()
    report = Report(name, sys.stdout)
    sys.stdout = sys.stderr  # models may print
    try:
        report.stage("build")
        if kind == "packages":
            from zoo.measure import measure

            measure(name.partition("/")[2], report)
            return 0
        case = build(name)
        report.row["params"] = sum(parameter.numel() for parameter in case.model.parameters())
        if kind == "torch-pruning":
            from zoo.peer import prune

            prune(case, TRACED_BATCH, report)
        else:
            _check(case, kind, report)
    except Exception as error:  # whatever goes wrong is the result
        traceback.print_exc()
        report.end("crash", f"{report.row['stage']}: {type(error).__name__}: {error}")
    return 0


def _volunteer_for_the_oom_killer() -> None:
    """A model too large for the machine shall end this process and no other."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{os.getpid()}/oom_score_adj").write_text("1000")


def _check(case: Case, backend: str, report: Report) -> None:
    """Wrap, mask, compact and compare."""
    import prunegate

    row = report.row
    row["revision"] = revision()
    if not case.pretrained:
        row["weights"] = _randomise(case)
    report.stage("wrap")
    start = time.perf_counter()
    gated = prunegate.wrap(case.model, case.inputs(TRACED_BATCH), backend=backend)
    row["wrap_s"] = round(time.perf_counter() - start, 2)
    row["groups"] = len(gated.groups)
    row["units"] = sum(group.num_units for group in gated.groups)
    row["pinned"] = pinned_of(gated.pinned)
    row["limits"] = [str(limit) for limit in gated.limits]
    class_before = type(case.model)
    case.model = nn.Module()  # the gated model has its own copy, and large models need the memory
    worst, shows, remarks = 0.0, True, []
    for density, batch in CHECKS:
        report.stage(f"mask, keeping {density}")
        gated.set_masks(masks_of(gated.groups, density))
        if "removed" not in row:
            row["removed"] = round(1 - gated.realised_cost("macs") / gated.dense_cost("macs"), 4)
        report.stage(f"compact, keeping {density}")
        result = prunegate.compact(gated)
        row["backend"] = result.backend
        row["same_class"] = type(result.model) is class_before
        model = result.model
        row["certified"] = finite(max(result.certificate.float64.max_rel, row.get("certified") or 0.0))
        del result
        report.stage(f"compare, keeping {density}, {batch} samples")
        found, refused = _compare(gated, model, case, batch)
        worst, shows = max(worst, found.relative), shows and found.shows
        row["worst"] = finite(worst)
        remarks += [remark for remark in (refused, found.remark) if remark and remark not in remarks]
        del model
        gc.collect()
    if not worst <= TOLERANCE:
        status = "mismatch"
    elif not shows:
        status = "vacuous"
    else:
        status = "batch" if any(remark.startswith(_COMPACT_REFUSES) for remark in remarks) else "ok"
    report.end(status, "; ".join(remarks))


def _compare(gated: nn.Module, compact: nn.Module, case: Case, batch: int) -> tuple[Apart, str]:
    """On ``batch`` samples; on as many as were traced if one of the models refuses, with the refusal."""
    try:
        return apart(gated, compact, case.inputs(batch), case.selects), ""
    except RefusedError as error:
        who = _COMPACT_REFUSES if error.compact else "the model itself refuses"
        refusal = f"{who} {batch} samples ({' '.join(str(error).split())[:160]})"
    gc.collect()
    return apart(gated, compact, case.inputs(TRACED_BATCH), case.selects), refusal


def _randomise(case: Case) -> str:
    """Weights under which every branch shows, also those that start at zero; the original ones if they overflow."""
    model = case.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, max(parameter[0].numel(), 1) ** -0.5)
            else:
                parameter.uniform_(0.5, 1.0)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    outputs = tensors_of(run(model, case.inputs(1 if case.selects else TRACED_BATCH)))
    if all(bool((tensor.abs() < _TOO_LARGE).all()) for tensor in outputs):  # false for NaN too
        return "random"
    model.load_state_dict(before)
    return "original"
