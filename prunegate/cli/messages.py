"""Log messages and warnings of commands, one line each, on standard error.

They go to the current ``sys.stderr``. While a live line is shown, that is rich's proxy, which prints above the line and
does not break it.
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
        except Exception:  # like logging's own handlers: a log that cannot be written does not stop the run
            self.handleError(record)


class _Lines(logging.Formatter):
    """``warning: text`` for warnings and errors; messages below that start with the module's name."""

    def format(self, record: logging.LogRecord) -> str:
        self._style._fmt = (
            "%(name)s: %(message)s" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: %(message)s"
        )
        return super().format(record)


def log_to_stderr(verbose: bool, quiet: bool) -> None:
    """Log to standard error: warnings; with ``verbose`` also progress messages, with ``quiet`` errors only."""
    handler = _ToStderr()
    handler.setFormatter(_Lines())
    level = logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING
    logging.basicConfig(level=level, handlers=[handler])


@contextmanager
def warnings_in_lines() -> Iterator[None]:
    """Show the package's own warnings without a source line, which is never in the user's code here."""
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
