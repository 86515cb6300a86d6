"""Everything that can go wrong by a user's hand, as one family of exceptions.

Every message follows one form: *where: what was found, what was expected. Why. What to do.*
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def first_line(error: BaseException) -> str:
    """The first line of what an error says, for messages: some errors are as long as a book, some say nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else ""


class PrunegateError(Exception):
    """Base of all errors that prunegate raises on purpose."""


class PrunegateWarning(UserWarning):
    """Something is most likely not as it was meant to be, and training goes on; the message says what to do."""


class TraceError(PrunegateError):
    """The model could not be run on its example inputs, or what it did could not be followed."""


class RuleError(TraceError):
    """A rule of the user's own (`register_rule`) raised something, or returned something else than labels."""


class NothingToPruneError(PrunegateError):
    """No channel of the model is prunable; the message lists the reasons."""


class MaskError(PrunegateError):
    """Hard masks were given that do not fit the channel groups, or there are none where they are needed."""


class BudgetError(PrunegateError):
    """A budget that no choice of units can meet, or that makes no sense."""


class LimitError(PrunegateError):
    """A compact model was called outside of the limits that `GatedModel.limits` tells of."""


class CompactionError(PrunegateError):
    """The compact model does not compute what the gated model computed; nothing was written."""


class CheckpointError(PrunegateError):
    """A checkpoint file that cannot be read, trusted or matched to a model."""


class ExportError(PrunegateError):
    """A model that another format cannot hold, or a file of it that computes something else."""


class ModelNameError(PrunegateError):
    """A model name or its arguments that no builder knows."""


class DataError(PrunegateError):
    """A data set that is not there or cannot be read."""


class RecipeError(PrunegateError):
    """A recipe with mistakes; the message lists all of them, each with file, line and key path."""


class DivergedError(PrunegateError):
    """Training has gone where it cannot come back from."""


class RunStoppedError(PrunegateError):
    """A run was asked to stop and did, with its state saved; the message says how it goes on.

    Attributes:
        signal: Number of the signal that asked for it, e.g. 15 (SIGTERM).
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class RunFolderError(PrunegateError):
    """An output folder that cannot be used for this run."""


class NotGatedError(PrunegateError):
    """A plain model, a class or a model in a wrapper was handed in where a gated model is needed."""


class LoopError(PrunegateError):
    """A training loop of the user's own in which the gates cannot be trained."""


class MissingPackageError(LoopError, ImportError):
    """An optional package is needed and not installed; the message names the extra that brings it."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The ``count`` known names that look most like ``name``, best first; empty if none is close."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
