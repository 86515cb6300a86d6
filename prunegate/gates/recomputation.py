"""Masks in recomputation: checkpointing reruns functions in the backward pass under the masks of their forward pass.

Masked weights need no special handling: a rerun function refers to the modules of its own forward pass
(`prunegate.gates.binding`). But the modes that mask function calls, or rewrite sizes in a compact model, have ended by
then; and a gated model that is rerun as a whole has to draw the same mask. torch has no hook for recomputation, but
both of its kinds create one object per function to rerun: a `CheckpointFunction` or a `_CheckpointFrame`. There the
function is replaced by one that continues under the same modes from their current position, or that first restores the
noise, as torch does with its own. If there is neither, nothing is replaced.
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
    """Marks that a gated model runs in this thread, so that functions rerun within it draw nothing."""
    _running.forwards += 1
    try:
        yield
    finally:
        _running.forwards -= 1


def resume_in_recomputation() -> None:
    """Make torch's checkpointing rerun functions as they first ran; done once per process."""
    with _lock:
        node, frame = checkpoint.CheckpointFunction, checkpoint._CheckpointFrame
        if not getattr(node.forward, _MARK, False):
            node.forward = staticmethod(_resuming(node.forward))  # type: ignore[method-assign]
        if not getattr(frame.__init__, _MARK, False):
            frame.__init__ = _resuming(frame.__init__)  # type: ignore[method-assign]


def _resuming(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function whose second argument is the function to be rerun."""

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
    """The function, to be rerun under the current modes even after they have ended."""
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
    """The function, to be rerun with the current noise in a backward pass."""
    sources = [source for source in list(SOURCES) if not source.state.is_meta]
    states = [(weakref.ref(source), source.get_state()) for source in sources]

    def run(*args: Any, **kwargs: Any) -> Any:
        if torch._C._current_graph_task_id() == -1:  # the forward itself
            return function(*args, **kwargs)
        alive = (source for source in (referring() for referring, _ in states) if source is not None)
        present = [(source, source.get_state()) for source in alive]
        try:
            for referring, state in states:
                source = referring()
                if source is not None:
                    source.set_state(state)
            return function(*args, **kwargs)
        finally:
            for source, state in present:
                source.set_state(state)

    return run
