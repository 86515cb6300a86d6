"""Positions of function calls in a model's code, which are the same in every run."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import nn


@dataclass(slots=True, unsafe_hash=True)  # never changed; frozen dataclasses are slower to create
class CodePlace:
    """A position in the model's code: an instruction of the function that starts at a line of a file."""

    file: str
    line: int
    function: str
    instruction: int


def place_in_code(func: Any) -> CodePlace:
    """The position of the call of ``func`` that a function mode is handling, skipping code that only forwards it."""
    return place_of(_caller(func, sys._getframe(2)))


def frame_of_call(func: Any) -> FrameType:
    """The frame that makes this call; what follows from it is quicker to find together."""
    return _caller(func, sys._getframe(2))


def place_of(frame: FrameType) -> CodePlace:
    """The position that a frame is at."""
    code = frame.f_code
    return CodePlace(code.co_filename, code.co_firstlineno, code.co_name, frame.f_lasti)


def line_in_code(func: Any) -> tuple[str, int]:
    """The file and line of the same."""
    frame = _caller(func, sys._getframe(2))
    return frame.f_code.co_filename, frame.f_lineno


def lines_of_call() -> list[tuple[str, int]]:
    """The files and lines that led to the call of a module that is about to start; see `lines_of`."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__") in _CALLING:
        frame = frame.f_back
    return lines_of(frame)


def lines_of(frame: FrameType | None) -> list[tuple[str, int]]:
    """The file and line that a frame is at, and those of all that led there since the running module was called."""
    results = []
    while frame is not None and frame.f_code is not _CALL_OF_A_MODULE:
        results.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return results


def _caller(func: Any, frame: FrameType) -> FrameType:
    own = getattr(func, "__code__", None)
    while frame.f_back is not None and (frame.f_code is own or frame.f_globals.get("__name__") in _PASSING_ON):
        frame = frame.f_back
    return frame


_CALL_OF_A_MODULE = nn.Module._call_impl.__code__
_CALLING = frozenset({"prunegate.groups.following.watch", "torch.nn.modules.module"})
_PASSING_ON = frozenset(
    """torch.overrides torch._tensor torch.functional torch.utils._device prunegate.groups.following.watch
    prunegate.groups.following.own_training prunegate.groups.torch_workarounds.kernels prunegate.gates.call_sites
    prunegate.compaction.resizing prunegate.compaction.learning prunegate.compaction.equivalence
    prunegate.compaction.precision prunegate.compaction.experts""".split()
)
