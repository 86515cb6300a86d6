"""The command line: a thin face on the library."""

from __future__ import annotations

from prunegate.cli.main import main

__all__ = ["main"]
