"""All errors that users can cause, as one family of exceptions.

Every message follows one form: *where: what was found, what was expected. Why. What to do.*
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def first_line(error: BaseException) -> str:
    """The first line of an error's message, as some messages are very long and some are empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else ""


class PrunegateError(Exception):
    """Base of all errors that prunegate raises on purpose."""


class PrunegateWarning(UserWarning):
    """Something is probably wrong, but training continues; the message says what to do."""


class TraceError(PrunegateError):
    """The model could not be run on its example inputs, or the run could not be traced."""


class RuleError(TraceError):
    """A rule of the user's own (`register_rule`) raised an error, or returned something other than labels."""


class NothingToPruneError(PrunegateError):
    """No channel of the model is prunable; the message lists the reasons."""


class MaskError(PrunegateError):
    """Hard masks were given that do not fit the channel groups, or masks are needed and missing."""


class BudgetError(PrunegateError):
    """A budget that no choice of units can meet, or that is invalid."""


class LimitError(PrunegateError):
    """A compact model was called outside of `GatedModel.limits`."""


class CompactionError(PrunegateError):
    """The compact model does not compute the same as the gated model; nothing was written."""


class CheckpointError(PrunegateError):
    """A checkpoint file that cannot be read, trusted or matched to a model."""


class ExportError(PrunegateError):
    """A model that another format cannot represent, or an exported file whose outputs differ."""


class BenchError(PrunegateError):
    """A setting of a benchmark that is invalid, or that a model cannot be run in."""


class ModelNameError(PrunegateError):
    """A model name or its arguments that no builder knows."""


class DataError(PrunegateError):
    """A data set that is missing or cannot be read."""


class RecipeError(PrunegateError):
    """A recipe with mistakes; the message lists all of them, each with file, line and key path."""


class DivergedError(PrunegateError):
    """Training has diverged."""


class RunStoppedError(PrunegateError):
    """A run was stopped on request, with its state saved; the message says how to resume it.

    Attributes:
        signal: Number of the signal that stopped it, e.g. 15 (SIGTERM).
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class RunFolderError(PrunegateError):
    """An output folder that cannot be used for this run."""


class NotGatedError(PrunegateError):
    """A plain model, a class or a model in a wrapper was passed where a gated model is needed."""


class LoopError(PrunegateError):
    """The user's training loop does not allow training the gates."""


class MissingPackageError(LoopError, ImportError):
    """An optional package is needed and not installed; the message names its extra."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The ``count`` known names most similar to ``name``, best first; empty if none is close."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
