"""Function modes of ours that are running: what checkpointing runs again has to run under them once more."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any, Protocol


class RunningMode(Protocol):
    """A mode that a module's forward runs under."""

    def count(self, name: str) -> None:
        """Note a call of a function that this mode did not see."""

    def again(self) -> AbstractContextManager[Any]:
        """A mode that goes on from where this one is now."""


class _Running(threading.local):
    def __init__(self) -> None:
        self.modes: list[Any] = []


_running = _Running()


def running_modes() -> list[Any]:
    """The modes (`RunningMode`) of all modules that are running in this thread, outermost first."""
    return _running.modes
