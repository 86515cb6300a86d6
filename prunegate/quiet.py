"""A context in which libraries that are called say nothing."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quietly(*loggers: str) -> Iterator[None]:
    """Suppress warnings, and messages of these loggers below errors."""
    noisy = [logging.getLogger(name) for name in loggers]
    levels = [(each, each.level) for each in noisy]
    try:
        for each in noisy:
            each.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in levels:
            each.setLevel(level)
