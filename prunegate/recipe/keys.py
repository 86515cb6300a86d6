"""Every key of a recipe with its form, default and meaning, generated from the schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from prunegate.recipe.schema import Recipe


@dataclass(frozen=True)
class Key:
    """One key of a recipe.

    Attributes:
        path: The key path, such as ``budget.fraction``.
        form: Its allowed values in words: ``number > 0.0, at most 1.0``.
        default: Its default in YAML, or None if it is required.
        meaning: Its description.
    """

    path: str
    form: str
    default: str | None
    meaning: str


def recipe_keys() -> list[Key]:
    """All keys, in the order of the schema."""
    schema = Recipe.model_json_schema()
    return list(_keys(schema, schema["$defs"], ""))


def _keys(section: dict[str, Any], definitions: dict[str, Any], before: str) -> Iterator[Key]:
    for name, given in section["properties"].items():
        entry = _resolved(given, definitions)
        path = f"{before}{name}"
        if "properties" in entry:
            yield from _keys(entry, definitions, f"{path}.")
            continue
        default = None
        if "default" in given or name not in section.get("required", []):
            default = json.dumps(given.get("default", {} if entry.get("type") == "object" else []))
        yield Key(path, _form(entry, definitions), default, given.get("description", ""))


def _resolved(entry: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    reference = entry.get("$ref") or next((part["$ref"] for part in entry.get("allOf", []) if "$ref" in part), None)
    results: dict[str, Any] = definitions[reference.rpartition("/")[2]] if reference else entry
    return results


_TYPES = {"integer": "whole number", "string": "text", "boolean": "true or false", "null": "none", "object": "keys"}
_BOUNDS = {
    "exclusiveMinimum": "above {}",
    "minimum": "at least {}",
    "exclusiveMaximum": "below {}",
    "maximum": "at most {}",
}


def _form(entry: dict[str, Any], definitions: dict[str, Any]) -> str:
    entry = _resolved(entry, definitions)
    choices = entry.get("anyOf") or entry.get("oneOf")
    if choices:
        return " or ".join(_form(choice, definitions) for choice in choices)
    if "enum" in entry:
        return ", ".join(map(str, entry["enum"]))
    if "const" in entry:
        return str(entry["const"])
    if entry.get("type") == "array":
        return f"list of: {_form(entry['items'], definitions)}"
    words = [_TYPES.get(entry.get("type", ""), entry.get("type", "any value"))]
    words += [text.format(entry[key]) for key, text in _BOUNDS.items() if key in entry]
    return ", ".join(words)
