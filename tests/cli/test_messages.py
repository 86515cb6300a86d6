"""Log messages and warnings of commands."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from prunegate.cli.messages import log_to_stderr, warnings_in_lines
from prunegate.errors import PrunegateWarning


def bare_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Called in the test itself: pytest's own handlers come and go with each phase."""
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)


def test_the_log_goes_to_what_stderr_is_at_the_moment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bare_logging(monkeypatch)
    log_to_stderr(verbose=True, quiet=False)
    logging.getLogger("prunegate.x").warning("gates: %d", 3)
    logging.getLogger("prunegate.x").info("cut")
    assert capsys.readouterr().err == "warning: gates: 3\nprunegate.x: cut\n"


def test_quiet_leaves_errors(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    bare_logging(monkeypatch)
    log_to_stderr(verbose=False, quiet=True)
    logging.getLogger("prunegate.x").warning("gates")
    logging.getLogger("prunegate.x").error("lost")
    assert capsys.readouterr().err == "error: lost\n"


def test_own_warnings_are_a_line_and_others_are_as_ever(capsys: pytest.CaptureFixture[str]) -> None:
    before = warnings.showwarning
    with warnings_in_lines(), warnings.catch_warnings():
        warnings.simplefilter("always")
        show = warnings.showwarning
        show(PrunegateWarning("gates: look"), PrunegateWarning, "watch.py", 66)
    assert capsys.readouterr().err == "warning: gates: look\n"
    assert warnings.showwarning is before


# As ``python -m prunegate``, which other tests start; but what a run measures at its end takes seconds.
RUN = """
import sys
from prunegate.cli import main
from tests.recipe.short import timed_briefly

with timed_briefly():
    sys.exit(main(sys.argv[1:]))
"""


def test_a_run_through_a_pipe_has_a_head_and_says_nothing_twice(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, "run", "tiny.yaml", "-v"],
        capture_output=True, text=True, timeout=300, env=_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0] == "prunegate: tiny"
    for number, part in enumerate(
        (
            "  model    timm/test_resnet (in_chans=1, num_classes=10): 373,370 parameters, ",
            "  data     digits: 128 training and 355 test samples of 1 × 16 × 16, 10 classes, batches of 64",
            "  budget   0.5 of the MACs",
            "  device   cpu, 1 thread; torch ",
            "  epochs   dense 1 → gate 1 → finetune 1, 2 steps each",
            "  folder   runs/tiny/",
        ),
        start=1,
    ):
        assert lines[number].startswith(part)
    for said in ("harden  ", "units kept; the compact", "dense     epoch   1", "results are in"):
        assert (done.stdout + done.stderr).count(said) == 1


def _environment() -> dict[str, str]:
    import os

    root = Path(__file__).resolve().parents[2]
    found = {**os.environ, "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}", "CUDA_VISIBLE_DEVICES": ""}
    return {name: value for name, value in found.items() if name not in ("FORCE_COLOR", "COLUMNS")}
