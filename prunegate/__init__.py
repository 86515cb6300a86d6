"""prunegate: differentiable structured pruning for PyTorch.

Wrap a model, train its gates under a budget, compact it without loss::

    gated = prunegate.wrap(model, example_inputs)
    ...  # any training loop
    result = prunegate.compact(gated)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from prunegate.errors import (
    BudgetError,
    CheckpointError,
    CompactionError,
    DataError,
    DivergedError,
    ExportError,
    LimitError,
    LoopError,
    MaskError,
    MissingPackageError,
    ModelNameError,
    NotGatedError,
    NothingToPruneError,
    PrunegateError,
    PrunegateWarning,
    RecipeError,
    RuleError,
    RunFolderError,
    RunStoppedError,
    TraceError,
)
from prunegate.version import __version__

if TYPE_CHECKING:
    from prunegate import report
    from prunegate.builders import Builder
    from prunegate.checkpoint import load, load_plan
    from prunegate.groups import register_rule
    from prunegate.latency import Latency, measure_latency
    from prunegate.training import Budget, GateSteps, TauSchedule, recover
    from prunegate.wrapping import Compaction, GatedModel, compact, wrap

__all__ = [
    "Budget",
    "BudgetError",
    "Builder",
    "CheckpointError",
    "Compaction",
    "CompactionError",
    "DataError",
    "DivergedError",
    "ExportError",
    "GateSteps",
    "GatedModel",
    "Latency",
    "LimitError",
    "LoopError",
    "MaskError",
    "MissingPackageError",
    "ModelNameError",
    "NotGatedError",
    "NothingToPruneError",
    "PrunegateError",
    "PrunegateWarning",
    "RecipeError",
    "RuleError",
    "RunFolderError",
    "RunStoppedError",
    "TauSchedule",
    "TraceError",
    "__version__",
    "compact",
    "load",
    "load_plan",
    "measure_latency",
    "recover",
    "register_rule",
    "report",
    "wrap",
]

# Modules of the names that need torch: they are imported on first use, so that `prunegate --help` is fast.
_HOMES = {
    "Budget": "prunegate.training",
    "Builder": "prunegate.builders",
    "Compaction": "prunegate.wrapping",
    "GateSteps": "prunegate.training",
    "GatedModel": "prunegate.wrapping",
    "Latency": "prunegate.latency",
    "TauSchedule": "prunegate.training",
    "compact": "prunegate.wrapping",
    "load": "prunegate.checkpoint",
    "load_plan": "prunegate.checkpoint",
    "measure_latency": "prunegate.latency",
    "recover": "prunegate.training",
    "register_rule": "prunegate.groups",
    "wrap": "prunegate.wrapping",
}


def __getattr__(name: str) -> Any:
    if name == "report":
        return importlib.import_module("prunegate.report")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'prunegate' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
