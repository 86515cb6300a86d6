"""A recipe's YAML text, with the line of every key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prunegate.errors import RecipeError

KeyPath = tuple[str | int, ...]


@dataclass
class Source:
    """The parsed document and the position of each value.

    Attributes:
        lines: For each key path, the position to show: ``file:line``, or the override that set it.
        mistakes: Mistakes in the text itself, such as a duplicate key.
    """

    name: str
    data: Any
    places: dict[KeyPath, str]
    mistakes: list[str]

    def place(self, path: KeyPath) -> str:
        """The position of a key path, or of its longest existing prefix."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return self.name

    def replace(self, path: KeyPath, place: str) -> None:
        """Record that ``path`` and everything below it now come from ``place``."""
        self.places = {known: at for known, at in self.places.items() if known[: len(path)] != path}
        self.places[path] = place


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also reads ``1e-3`` as a number, as YAML 1.2 does and 1.1 does not."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_value(text: str) -> Any:
    """One YAML value, such as an override's.

    Raises:
        ValueError: The text is not YAML.
    """
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(getattr(error, "problem", None) or str(error)) from error


def read_source(path: Path) -> Source:
    """Parse a recipe file.

    Raises:
        RecipeError: The file is missing or not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}. Pass the path of a recipe in YAML.") from error
    try:
        root = yaml.compose(text, Loader)
        data = yaml.load(text, Loader)
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # for example dates out of range, or thousands of brackets
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError(f"{path}{line}: is not valid YAML: {problem}. Correct the syntax there.") from error
    source = Source(str(path), data, {(): f"{path}:1"}, [])
    if root is not None:
        for key_path, node, twice in _walk(root, (), set()):
            line = node.start_mark.line + 1
            source.places[key_path] = f"{path}:{line}"
            if twice:
                source.mistakes.append(f"{path}:{line}: {dotted(key_path)}: found twice, expected once. Remove one.")
    return source


def entries(value: Any, known: dict[int, int] | None = None) -> int:
    """Number of values with all aliases expanded; each is visited once, and recursive aliases end the count."""
    known = {} if known is None else known
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        known[id(value)] = 0  # while it is being counted
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(entries(part, known) for part in parts)
    return known[id(value)]


def dotted(path: KeyPath) -> str:
    return ".".join(str(part) for part in path) or "recipe"


def _walk(node: Any, path: KeyPath, visited: set[int]) -> Iterator[tuple[KeyPath, Any, bool]]:
    """Every key path with its node, and whether the key is a duplicate in its mapping.

    A node that an alias repeats is visited once, as aliases may be nested without end.
    """
    if id(node) in visited:
        return
    visited.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            here = (*path, str(key.value))
            yield here, key, key.value in seen
            seen.add(str(key.value))
            yield from _walk(value, here, visited)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*path, index), value, False
            yield from _walk(value, (*path, index), visited)
