"""Torch-Pruning on the same models, as its manual shows it and with nothing told about the model.

30 % of the channels by magnitude; the layers that tell the classes apart are left alone, and so are the heads
of detectors, as its own tests do.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from zoo.exact import run, tensors_of
from zoo.models import Case

if TYPE_CHECKING:
    from zoo.child import Report

RATIO = 0.3
_DETECTOR_HEADS = ("head", "rpn.head", "roi_heads")


def prune(case: Case, batch: int, report: Report) -> None:
    """Prune, run, and report the share of the MACs that is gone and the seconds that finding groups took."""
    import torch_pruning as tp

    model, inputs = case.model, case.inputs(batch)
    shapes, dense = _shapes_and_macs(model, inputs)
    report.stage("build_dependency")
    start = time.perf_counter()
    tp.DependencyGraph().build_dependency(model, example_inputs=inputs)
    report.row["build_s"] = round(time.perf_counter() - start, 2)
    report.stage("prune")
    pruner = tp.pruner.MagnitudePruner(
        model,
        inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=False,
        pruning_ratio=RATIO,
        ignored_layers=_last_layers(case),
    )
    pruner.step()
    report.stage("run")
    found, macs = _shapes_and_macs(model, inputs)
    report.row["removed"] = round(1 - macs / dense, 4) if dense else 0.0
    # How many objects a detector finds changes with its weights; their form does not.
    if not case.selects and found != shapes:
        report.end("shapes", f"outputs of another shape: {found[:3]}, before {shapes[:3]}")
    elif macs >= dense:
        report.end("nothing", "nothing was pruned")
    else:
        report.end("ok")


def _last_layers(case: Case) -> list[nn.Module]:
    heads = [module for name, module in case.model.named_modules() if case.selects and name in _DETECTOR_HEADS]
    return heads + [
        module
        for module in case.model.modules()
        if case.classes and case.classes in (getattr(module, "out_features", 0), getattr(module, "out_channels", 0))
    ]


def _shapes_and_macs(model: nn.Module, inputs: Any) -> tuple[list[tuple[int, ...]], int]:
    """Shapes of the outputs, and MACs of convolutions and matrix products, those in attention among them."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused operations are not counted
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            outputs = tensors_of(run(model, inputs))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return [tuple(tensor.shape) for tensor in outputs], counter.get_total_flops() // 2
