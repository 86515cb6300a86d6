"""PACKAGES.md out of the results of the packages' models."""

from __future__ import annotations
from pathlib import Path


def write_packages(folder: Path, out: Path) -> None:
    pass
