"""The recipes shipped with the package, by name."""

from __future__ import annotations

import sysconfig
from pathlib import Path

_ROOT = Path(__file__).parents[2]
# In a checkout, and where installers put a wheel's data: in the environment or next to the package.
_FOLDERS = (
    _ROOT / "recipes",
    Path(sysconfig.get_path("data")) / "share" / "prunegate" / "recipes",
    _ROOT / "share" / "prunegate" / "recipes",
)


def _shipped() -> dict[str, Path]:
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def shipped_names() -> list[str]:
    """``quickstart`` and the others, sorted."""
    return list(_shipped())


def recipe_file(given: Path) -> Path:
    """The file itself if it exists, or the shipped recipe of that name.

    Both ``quickstart`` and ``recipes/quickstart.yaml``, as in a checkout, work.
    """
    if given.exists() or str(given.parent) not in (".", "recipes"):
        return given
    return _shipped().get(given.stem, given)
