"""The command line: a thin layer over the library."""

from __future__ import annotations

from prunegate.cli.main import main

__all__ = ["main"]
