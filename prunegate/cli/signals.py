"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ASKING = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """The number of the received signal, 0 if there is none."""

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self) -> int:
        return self.signal


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Catch SIGINT and SIGTERM, so that a run can save and end; a second SIGINT exits at once.

    Yields:
        The request, to be polled.
    """
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and request.signal:
            raise KeyboardInterrupt
        request.signal = number
        sys.stderr.write("prunegate: stopping after this step; press Ctrl-C again to exit at once\n")

    before = {number: signal.signal(number, note) for number in _ASKING}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
