"""Torch-Pruning on the same models, as its manual shows it and with nothing told about the model.

30 % of the channels by magnitude; the layers that tell the classes apart are left alone, and so are the heads
of detectors, as its own tests do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
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
    row = _pruned(case.model, case.inputs(batch), RATIO, case.selects, _last_layers(case), report.stage)
    status, message = row.pop("status"), row.pop("message", "")
    report.row |= row
    report.end(status, message)


def pruned(
    model: nn.Module, inputs: Any, ratio: float, selects: bool, places: Collection[str] | None = None
) -> dict[str, Any]:
    """What comes of pruning a model of which nothing is known but which layers its outputs come from.

    Args:
        places: Where the outputs are that count, if not all do.
    """
    stages = ["before pruning"]
    try:
        ignored = _output_layers(model, inputs, places)
        return _pruned(model, inputs, ratio, selects, ignored, stages.append, places)
    except Exception as error:  # whatever goes wrong is the result
        return {"status": "crash", "message": " ".join(f"{stages[-1]}: {type(error).__name__}: {error}".split())[:200]}


def _pruned(
    model: nn.Module,
    inputs: Any,
    ratio: float,
    selects: bool,
    ignored: list[nn.Module],
    stage: Callable[[str], None],
    places: Collection[str] | None = None,
) -> dict[str, Any]:
    import torch_pruning as tp

    row: dict[str, Any] = {}
    shapes, dense = _shapes_and_macs(model, inputs, places)
    stage("build_dependency")
    start = time.perf_counter()
    tp.DependencyGraph().build_dependency(model, example_inputs=inputs)
    row["build_s"] = round(time.perf_counter() - start, 2)
    stage("prune")
    pruner = tp.pruner.MagnitudePruner(
        model,
        inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=False,
        pruning_ratio=ratio,
        ignored_layers=ignored,
    )
    pruner.step()
    stage("run")
    found, macs = _shapes_and_macs(model, inputs, places)
    row["removed"] = round(1 - macs / dense, 4) if dense else 0.0
    # How many objects a detector finds changes with its weights; their form does not.
    if not selects and found != shapes:
        return row | {"status": "shapes", "message": f"outputs of another shape: {found[:3]}, before {shapes[:3]}"}
    if macs >= dense:
        return row | {"status": "nothing", "message": "nothing was pruned"}
    return row | {"status": "ok"}


def _output_layers(model: nn.Module, inputs: Any, places: Collection[str] | None) -> list[nn.Module]:
    """The layers whose output the model returns, itself or reshaped; and the last that runs."""
    made: dict[int, nn.Module] = {}
    ran: list[nn.Module] = []

    def note(module: nn.Module, _: Any, output: Any) -> None:
        made.update({tensor.data_ptr(): module for tensor in tensors_of(output)})
        ran.append(module)

    hooks = [
        module.register_forward_hook(note)
        for module in model.modules()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
    ]
    try:
        outputs = _counted(run(model, inputs), places)
    finally:
        for hook in hooks:
            hook.remove()
    return [made[tensor.data_ptr()] for tensor in outputs if tensor.data_ptr() in made] + ran[-1:]


def _last_layers(case: Case) -> list[nn.Module]:
    heads = [module for name, module in case.model.named_modules() if case.selects and name in _DETECTOR_HEADS]
    return heads + [
        module
        for module in case.model.modules()
        if case.classes and case.classes in (getattr(module, "out_features", 0), getattr(module, "out_channels", 0))
    ]


def _counted(outputs: Any, places: Collection[str] | None) -> list[torch.Tensor]:
    if places is None:
        return tensors_of(outputs)
    from prunegate.groups.following.outputs import tensors_in  # rows without a choice hold the peer's memory alone

    return tensors_in(outputs, places=places)


def _shapes_and_macs(
    model: nn.Module, inputs: Any, places: Collection[str] | None
) -> tuple[list[tuple[int, ...]], int]:
    """Shapes of the outputs, and MACs of convolutions and matrix products, those in attention among them."""
    fast = torch.backends.mha.get_fastpath_enabled()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:  # the counter fails on some models otherwise
        parameter.requires_grad_(False)
    torch.backends.mha.set_fastpath_enabled(False)  # fused operations are not counted
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            outputs = _counted(run(model, inputs), places)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for parameter in trained:
            parameter.requires_grad_(True)
    return [tuple(tensor.shape) for tensor in outputs], counter.get_total_flops() // 2
