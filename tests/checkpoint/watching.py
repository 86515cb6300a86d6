"""Watching the reading of a file with Python's audit hooks, and its time and memory."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_SECONDS = 20.0
MOST_BYTES = 300 * 2**20


class Watcher:
    """What Python's audit hook saw while it was on."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        self.allowed = Path("/")
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open" and isinstance(args[0], str):
            writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            of_python = args[0].endswith((".py", ".pyc")) or "site-packages" in args[0] or args[0].startswith("/proc/")
            if writes or not (of_python or Path(args[0]) == self.allowed):
                self.seen.append(f"open {args[0]}")
        elif event == "import" and args[0].split(".")[0] not in sys.modules:
            self.seen.append(f"import {args[0]}")
        elif event.split(".")[0] in ("socket", "subprocess", "shutil", "urllib", "ctypes") or event in (
            "os.system",
            "os.remove",
            "os.rename",
            "os.mkdir",
            "os.exec",
            "os.fork",
            "pickle.find_class",
        ):
            self.seen.append(event)


WATCHER = Watcher()


@contextlib.contextmanager
def nothing_else_happens(file: Path) -> Iterator[None]:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    WATCHER.allowed, WATCHER.seen, WATCHER.on = file, [], True
    try:
        yield
    finally:
        WATCHER.on = False
    assert WATCHER.seen == [], WATCHER.seen
    assert time.process_time() - start < MOST_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_BYTES
