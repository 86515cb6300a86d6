"""Function modes of ours that are running: what checkpointing runs again has to run under them once more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
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
        self.steadied = 0


_running = _Running()


def running_modes() -> list[Any]:
    """The modes (`RunningMode`) of all modules that are running in this thread, outermost first."""
    return _running.modes


@contextmanager
def without_dropout() -> Iterator[None]:
    """Masked functions of this thread drop nothing, so that what they compute can be compared.

    Function modes around a gated model do not see what its masked functions call.
    """
    _running.steadied += 1
    try:
        yield
    finally:
        _running.steadied -= 1


def drops_nothing() -> bool:
    """Whether this thread is in `without_dropout`."""
    return _running.steadied > 0
