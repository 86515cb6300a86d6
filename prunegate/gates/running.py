"""Function modes of ours that are running: what checkpointing runs again has to run under them once more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.overrides import TorchFunctionMode


class RunningMode(TorchFunctionMode):
    """A mode that a module's forward runs under, known while it does."""

    def count(self, name: str) -> None:
        """Note a call of a function that this mode did not see."""

    def again(self) -> RunningMode:
        """A mode that goes on from where this one is now."""
        raise NotImplementedError

    def __enter__(self) -> RunningMode:
        running_modes().append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        running_modes().remove(self)
        super().__exit__(*exception)  # type: ignore[no-untyped-call]


class _Running(threading.local):
    def __init__(self) -> None:
        self.modes: list[RunningMode] = []
        self.steadied = 0


_running = _Running()


def running_modes() -> list[RunningMode]:
    """The modes of all modules that are running in this thread, outermost first."""
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
