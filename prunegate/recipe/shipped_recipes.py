"""The recipes that come with the package, by their names."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent / "shipped"


def shipped_names() -> list[str]:
    """``quickstart`` and the others, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def recipe_file(given: Path) -> Path:
    """The file itself where there is one, or the shipped recipe of that name.

    ``quickstart`` will do, and ``recipes/quickstart.yaml`` as in a checkout.
    """
    if given.exists() or str(given.parent) not in (".", "recipes") or given.stem not in shipped_names():
        return given
    return _FOLDER / f"{given.stem}.yaml"
