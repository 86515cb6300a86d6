"""Imports point one way: a module may import its own package and strictly lower levels."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import prunegate

ROOT = Path(prunegate.__file__).parent

LEVELS = {
    "errors": 0,
    "files": 0,
    "modes": 0,
    "numbers": 0,
    "quiet": 0,
    "seeding": 0,
    "version": 0,
    "settings": 0,
    "cifar_resnet": 0,
    "own_code": 1,
    "without_data": 0,
    "measuring": 1,
    "weight_files": 1,
    "groups": 1,
    "builders": 1,
    "gates": 2,
    "costs": 2,
    "data": 2,
    "identify": 2,
    "compaction": 3,
    "checkpoint": 4,
    "wrapping": 5,
    "training": 6,
    "report": 6,
    "exporting": 6,
    "runtimes": 7,
    "latency": 8,
    "recipe": 9,
    "integrations": 9,
    "bench": 10,
    "cli": 11,
}
# The faces of the library, which gather names from everywhere.
FACES = {"__init__", "__main__"}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported_parts(path: Path) -> set[str]:
    """The parts of prunegate that a file imports, wherever in the file it does so."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where they point"
            # `from prunegate import checkpoint` names the part after `import`.
            names = [node.module or ""]
            if node.module == "prunegate":
                names = [f"prunegate.{alias.name}" for alias in node.names if alias.name != "__version__"]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("prunegate.")}
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_to_lower_levels(path: Path) -> None:
    part = part_of(path)
    if part in FACES:
        return
    assert part in LEVELS, f"{path}: part {part!r} has no level; add it to LEVELS"
    for other in imported_parts(path) - {part}:
        assert LEVELS[other] < LEVELS[part], f"{path}: imports {other} (level {LEVELS[other]})"


def test_every_level_has_files() -> None:
    present = {part_of(path) for path in ROOT.rglob("*.py")} - FACES
    assert present == set(LEVELS)
