"""Saved states of a run: each written atomically, the last few kept."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

import torch

from prunegate.errors import RunFolderError, first_line
from prunegate.files import replacing
from prunegate.recipe.schema import CheckpointSettings
from prunegate.recipe.state import RunState

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"


class StepCheckpoints:
    """The files ``checkpoints/step-<number>.pt`` of a run; no code in them is executed."""

    def __init__(self, run: Path, settings: CheckpointSettings) -> None:
        self.folder, self._settings = run / FOLDER, settings
        self._written = time.monotonic()
        self._last: int | None = None

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due, by steps or minutes since the last one."""
        steps, minutes = self._settings.every_steps, self._settings.every_minutes
        by_steps = steps is not None and step % steps == 0
        return by_steps or (minutes is not None and time.monotonic() - self._written >= 60.0 * minutes)

    def save(self, state: RunState) -> Path:
        """Write a state and remove the oldest beyond those to keep.

        Raises:
            RunFolderError: The disk is full; existing files are unchanged.
        """
        path = self.folder / f"step-{state.step:09}.pt"
        try:
            with replacing(path) as temporary:
                torch.save(state.as_dict(), temporary)
        except (OSError, RuntimeError) as error:  # torch's writer raises its own error for a full disk
            raise RunFolderError(
                f"{path}: cannot be written: {first_line(error)}. Existing files are unchanged"
                f"{self._newest_is()}. Free disk space, and resume."
            ) from error
        self._written = time.monotonic()
        for old in self._files()[: -self._settings.keep]:
            old.unlink(missing_ok=True)
        return path

    def newest(self) -> RunState | None:
        """The newest state that can be read, None if there is no file.

        Raises:
            RunFolderError: There are files, but none can be read.
        """
        files = self._files()
        for path in reversed(files):
            try:
                return RunState.from_dict(torch.load(path, map_location="cpu", weights_only=True))
            except Exception as error:  # a damaged file may raise anything in torch
                logger.warning("%s: cannot be read: %s. Trying the previous one.", path, first_line(error))
        if files:
            raise RunFolderError(
                f"{self.folder}: none of the {len(files)} checkpoints can be read. They are damaged, or made by "
                "another version of prunegate. Start the run again in another folder."
            )
        return None

    def remove(self) -> None:
        """Remove all states of a finished run."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> list[Path]:
        """The files, oldest first."""
        return sorted(self.folder.glob("step-*.pt"))

    def _newest_is(self) -> str:
        files = self._files()
        return f"; the last checkpoint is {files[-1]}" if files else "; there is no checkpoint yet"


def bytes_needed(weight_bytes: int, budgets: int, settings: CheckpointSettings, copies: int) -> int:
    """Upper estimate of what a run writes, in bytes.

    Args:
        copies: Number of further copies of the weights in a state.
    """
    # During finetuning a state also holds the gated model. While a state is written, one more exists.
    in_states = (settings.keep + 1) * weight_bytes * (2 + copies)
    return in_states + weight_bytes * (1 + budgets)
