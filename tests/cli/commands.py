"""Running a command in this process, and checks that hold for all commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunegate.cli import main


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that has to fail with a user's mistake; return its message."""
    before = files(folder)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("prunegate: ")
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert files(folder) == before
    return captured.err


def succeeded(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out
