"""What commands say beside their results: the log and warnings, a line each, on standard error.

All of it goes to what ``sys.stderr`` is at the moment: while a live line is shown, that is rich's proxy, which prints
above the line, so that nothing breaks it.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from prunegate.errors import PrunegateWarning


class _ToStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
        except Exception:  # as handlers of logging do: a log that cannot be written stops nothing
            self.handleError(record)


class _Lines(logging.Formatter):
    """``warning: text`` for what needs a look, with the module's name before it for what is only noted."""

    def format(self, record: logging.LogRecord) -> str:
        self._style._fmt = (
            "%(name)s: %(message)s" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: %(message)s"
        )
        return super().format(record)


def log_to_stderr(verbose: bool, quiet: bool) -> None:
    """Send the log to standard error: warnings; with ``verbose`` what is being done too, with ``quiet`` errors only."""
    handler = _ToStderr()
    handler.setFormatter(_Lines())
    level = logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING
    logging.basicConfig(level=level, handlers=[handler])


@contextmanager
def warnings_in_lines() -> Iterator[None]:
    """Show the package's own warnings without the line of code that they come from, which is never the user's here."""
    before = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> Any:
        if file is None and issubclass(category, PrunegateWarning):
            sys.stderr.write(f"warning: {message}\n")
        else:
            before(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before
