"""A process that imports once, and does each task that it is given in a fork of its own.

The code of such a process ends in ``serve(task)``. What a task prints comes first, then the exit status of its fork.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


def serve(task: Callable[..., None]) -> None:
    """In that process: for every line of arguments that comes in, a fork that does the task."""
    for line in sys.stdin:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 3.12 warns of threads, of which the libraries started some
            child = os.fork()
        if child == 0:
            _exit_after(task, json.loads(line))
        answer(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def answer(value: Any) -> None:
    sys.stdout.write(f"{json.dumps(value)}\n")
    sys.stdout.flush()


def _exit_after(task: Callable[..., None], arguments: list[Any]) -> None:
    try:
        task(*arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


@dataclass(frozen=True)
class Forks:
    """That process, as the test sees it."""

    process: subprocess.Popen[str]

    def start(self, *arguments: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(arguments) + "\n")
        self.process.stdin.flush()

    def next_answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@contextmanager
def forks(code: str, *options: str) -> Iterator[Forks]:
    """Start the process; at the end it is killed with all its forks.

    Args:
        options: Of the interpreter.
    """
    with subprocess.Popen(
        [sys.executable, *options, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield Forks(process)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
