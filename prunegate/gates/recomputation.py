"""What checkpointing runs again in the backward pass, and the masks of its forward.

Masked weights need no help: what is run again holds the modules of its own forward (`prunegate.gates.binding`). But the
modes under which function calls are masked, or sizes rewritten in a compact model, have ended by then; and where a
whole gated model is run again, it has to draw what it drew. torch tells nobody of a recomputation. Both of its kinds,
however, make one object for each function that is to be run again: a `CheckpointFunction` or a `_CheckpointFrame`.
There the function is replaced by one that goes on under the same modes from where they stand, or that first puts the
noise back, as torch does with its own. Where there is neither, nothing is replaced.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch.utils import checkpoint

from prunegate.gates.noise import SOURCES
from prunegate.gates.running import running_modes

_lock = threading.Lock()
_MARK = "_prunegate_resumes"


class _Running(threading.local):
    def __init__(self) -> None:
        self.forwards = 0


_running = _Running()


@contextmanager
def forward_of_gated_model() -> Iterator[None]:
    """While a gated model runs in this thread: what is run again within it draws nothing."""
    _running.forwards += 1
    try:
        yield
    finally:
        _running.forwards -= 1


def resume_in_recomputation() -> None:
    """Have torch's checkpointing run functions again as they were run; once for the process."""
    with _lock:
        node, frame = checkpoint.CheckpointFunction, checkpoint._CheckpointFrame
        if not getattr(node.forward, _MARK, False):
            node.forward = staticmethod(_resuming(node.forward))  # type: ignore[method-assign]
        if not getattr(frame.__init__, _MARK, False):
            frame.__init__ = _resuming(frame.__init__)  # type: ignore[method-assign]


def _resuming(original: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose second argument is what will be run again."""

    @wraps(original)
    def called(first: Any, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return original(first, _resumed(function), *args, **kwargs)

    setattr(called, _MARK, True)
    return called


def _resumed(function: Callable[..., Any]) -> Callable[..., Any]:
    if running_modes():
        return _under_modes(function)
    return _with_noise(function) if SOURCES and not _running.forwards else function


def _under_modes(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, to be run under the modes of now also when they have ended."""
    modes = list(running_modes())
    starts = [mode.again() for mode in modes]

    def run(*args: Any, **kwargs: Any) -> Any:
        if running_modes()[: len(modes)] == modes:  # the forward itself
            return function(*args, **kwargs)
        with ExitStack() as stack:
            for start in starts:
                stack.enter_context(start.again())
            return function(*args, **kwargs)

    return run


def _with_noise(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, to be run with the noise of now also in a backward pass."""
    sources = [source for source in list(SOURCES) if not source.state.is_meta]
    states = [(weakref.ref(source), source.get_state()) for source in sources]

    def run(*args: Any, **kwargs: Any) -> Any:
        if torch._C._current_graph_task_id() == -1:  # the forward itself
            return function(*args, **kwargs)
        present = [(source, source.get_state()) for source in (result() for result, _ in states) if source is not None]
        try:
            for result, state in states:
                source = result()
                if source is not None:
                    source.set_state(state)
            return function(*args, **kwargs)
        finally:
            for source, state in present:
                source.set_state(state)

    return run
