"""The active function modes of prunegate, under which checkpointing has to rerun functions."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.overrides import TorchFunctionMode


class RunningMode(TorchFunctionMode):
    """A mode that a module's forward runs under, registered while it runs."""

    def count(self, name: str) -> None:
        """Count a call of a function that this mode did not see."""

    def again(self) -> RunningMode:
        """A mode that continues from the current position of this one."""
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
    """Disable dropout in the masked functions of this thread, so that outputs can be compared.

    Function modes around a gated model do not see the calls inside its masked functions.
    """
    _running.steadied += 1
    try:
        yield
    finally:
        _running.steadied -= 1


def drops_nothing() -> bool:
    """Whether this thread is in `without_dropout`."""
    return _running.steadied > 0
