"""The completion script works in a real shell."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from prunegate.cli.main import main
from tests.cli.commands import succeeded

ASK = """
COMP_WORDS=({words})
COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_prunegate
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def completed(script: str, words: str) -> list[str]:
    """What bash offers for the last of some words."""
    asked = script + ASK.format(words=words)
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "some", "none"),
    [
        ('prunegate ""', ["run", "inspect", "export", "show", "verify", "init", "recipe", "completion"], ["--json"]),
        ("prunegate ex", ["export"], ["run"]),
        ("prunegate --ver", ["--version", "--verbose"], []),
        ("prunegate run --re", ["--resume"], ["--format"]),
        ("prunegate -v run recipe.yaml --res", ["--resume"], []),
        ('prunegate recipe ""', ["keys"], ["run"]),
        ("prunegate recipe keys --j", ["--json"], []),
        ('prunegate export runs/x --format ""', ["safetensors", "onnx", "pt2"], ["--force"]),
        ('prunegate completion ""', ["bash", "zsh"], []),
        ('prunegate run ""', [], ["run", "--json"]),  # files, by the shell itself
    ],
)
def test_bash_completes(
    folder: Path, capsys: pytest.CaptureFixture[str], words: str, some: list[str], none: list[str]
) -> None:
    found = completed(succeeded(capsys, "completion", "bash"), words)
    assert set(some) <= set(found)
    assert not set(none) & set(found)


def test_zsh_runs_the_same_script(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zsh, bash = (succeeded(capsys, "completion", shell) for shell in ("zsh", "bash"))
    assert zsh.startswith("autoload")
    assert "bashcompinit" in zsh
    assert zsh.endswith(bash)


def test_other_shells_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["completion", "tcsh"])
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err
