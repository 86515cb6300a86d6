"""Saves a file from a process that is stopped before and after each of its system calls.

    python -m tests.checkpoint.stepping FILE

At each stop the process is where a killed one would be, so what is on the disk then is what a kill would leave. What
was found goes out as one JSON line. For Linux: stands on ptrace.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from tests.checkpoint.models import compacted
from tests.checkpoint.test_interrupted_save import read_whole

_TRACE_ME, _TO_NEXT_SYSTEM_CALL, _KILL_WITH_TRACER = 0, 24, 0x100000
_SET_OPTIONS = 0x4200
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_LIBC.ptrace.restype = ctypes.c_long


def _ptrace(request: int, pid: int = 0, data: int = 0) -> None:
    if _LIBC.ptrace(request, pid, None, data) == -1:
        raise OSError(ctypes.get_errno(), "ptrace")


def main(file: Path) -> dict[str, Any]:
    """The stops, and the numbers that were read at them, in the order they came up."""
    torch.set_num_threads(1)
    result, _ = compacted("SmallNet", 16)
    result._fingerprint = lambda: None  # type: ignore[method-assign]  # computed before anything is written
    result.save(file, extra={"number": 0})
    child = os.fork()
    if child == 0:
        _ptrace(_TRACE_ME)
        os.kill(os.getpid(), signal.SIGSTOP)
        result.save(file, extra={"number": 1})
        os._exit(0)
    os.waitpid(child, 0)
    _ptrace(_SET_OPTIONS, child, _KILL_WITH_TRACER)
    stops, numbers, others = 0, [0], set()
    while True:
        _ptrace(_TO_NEXT_SYSTEM_CALL, child)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            break
        stops += 1
        number, _ = read_whole(file)
        if number != numbers[-1]:
            numbers.append(number)
        others.add(len(list(file.parent.iterdir())) - 1)
    return {"status": status, "stops": stops, "numbers": numbers, "most_other_files": max(others)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))) + "\n")
