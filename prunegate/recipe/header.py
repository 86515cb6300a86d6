"""The header of a run, shown before training: model, data, sizes, budget, device, stages, folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from prunegate.builders import Builder
from prunegate.data import Data
from prunegate.own_code import OwnBuilder
from prunegate.recipe.schema import Recipe
from prunegate.recipe.state import RunState, place
from prunegate.report import RunStart
from prunegate.training import Processes
from prunegate.wrapping import GatedModel

_NAMES = {"macs": "MACs", "params": "parameters", "latency_ms": "latency", "memory_mb": "memory"}
_UNITS = {**_NAMES, "latency_ms": "ms", "memory_mb": "MB"}


def run_start(
    recipe: Recipe,
    builder: Builder | OwnBuilder,
    gated: GatedModel,
    data: Data,
    processes: Processes,
    folder: Path,
    state: RunState | None = None,
) -> RunStart:
    """The header of a run.

    Args:
        gated: The gated model before training.
        state: The state to resume from, if any.
    """
    stages = _stages(recipe, state)
    passes = " → ".join(f"{name} {epochs}" for name, epochs in stages) or "none"
    facts = (
        ("model", _model(builder, gated)),
        ("data", _data(recipe, data)),
        ("budget", _budget(recipe)),
        ("device", _device(processes)),
        ("epochs", f"{passes}, {_counted(data.steps_per_epoch, 'step')} each"),
        ("folder", f"{folder}/"),
    )
    return RunStart(f"prunegate: {recipe.name}", facts, tuple(stages))


def _stages(recipe: Recipe, state: RunState | None) -> list[tuple[str, int]]:
    """The stages still to be trained with their epochs, without empty stages."""
    wanted = recipe.stages
    results = [("dense", 0, wanted.dense.epochs)]
    for index in range(len(recipe.budget.fractions)):
        results += [("gate", index, wanted.gate.epochs), ("finetune", index, wanted.finetune.epochs)]
    return [
        (stage, epochs)
        for stage, index, epochs in results
        if epochs and (state is None or place(stage, index) >= state.place)
    ]


def _model(builder: Builder | OwnBuilder, gated: GatedModel) -> str:
    arguments = ", ".join(f"{key}={value!r}" for key, value in builder.arguments.items())
    return (
        f"{builder.full_name}{f' ({arguments})' if arguments else ''}: {gated.dense_cost('params'):,} parameters, "
        f"{gated.dense_cost('macs'):,} MACs per sample; {gated.analysis.num_units:,} units in "
        f"{_counted(len(gated.groups), 'channel group')}"
    )


def _data(recipe: Recipe, data: Data) -> str:
    shape = " × ".join(map(str, data.shape))
    classes = "" if data.num_classes is None else f", {_counted(data.num_classes, 'class', 'classes')}"
    return (
        f"{recipe.data.name}: {data.num_train:,} training and {data.num_test:,} test samples of {shape}{classes}, "
        f"batches of {min(data.batch_size, data.num_train)}"
    )


def _budget(recipe: Recipe) -> str:
    budget = recipe.budget
    if budget.limit is not None:
        told = f"{budget.limit:,} {_UNITS[budget.metric]}"
    else:
        told = f"{_shares(budget.fractions)} of the {_NAMES[budget.metric]}"
    return told + "".join(f", {share:g} of the {_NAMES[metric]}" for metric, share in budget.also.items())


def _shares(fractions: Sequence[float]) -> str:
    return ", then ".join(f"{fraction:g}" for fraction in fractions)


def _device(processes: Processes) -> str:
    device = processes.device
    if device.type == "cuda":
        told = torch.cuda.get_device_name(device)
    else:
        told = f"{device.type}, {_counted(torch.get_num_threads(), 'thread')}" if device.type == "cpu" else str(device)
    told += f", {processes.count} processes" if processes.count > 1 else ""
    return f"{told}; torch {torch.__version__}"


def _counted(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"
