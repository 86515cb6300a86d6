"""Strict JSON for untrusted files: parsed without ambiguity at bounded cost, and written in canonical form."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

# Deepest nesting; prunegate's documents need seven levels.
_DEEPEST = 32
# Most entries of all containers together, including users' data. Each takes about 80 bytes.
_MOST_ENTRIES = 1 << 18
# Most digits of an integer, more than any seed, size or count has.
_LONGEST_NUMBER = 40


def read(text: str) -> dict[str, Any]:
    """The object in ``text``.

    Raises:
        ValueError: It is not a JSON object; or a name occurs twice, a number is not finite or too long, or containers
            are too deep or have too many entries.
    """
    if text.count(",") + text.count("{") + text.count("[") > _MOST_ENTRIES:
        raise ValueError(f"document: found more than {_MOST_ENTRIES} entries")
    try:
        tree = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_whole,
            object_pairs_hook=without_doubles,
        )
    except RecursionError as error:
        raise ValueError("document: nested too deeply") from error
    if not isinstance(tree, dict):
        raise ValueError(f"document: found {type(tree).__name__}, expected an object")
    _check_depth(tree)
    return tree


def size_of(tree: Any) -> int:
    """The number of entries of all containers together."""
    if isinstance(tree, (dict, list)):
        return len(tree) + sum(map(size_of, tree.values() if isinstance(tree, dict) else tree))
    return 0


def canonical(tree: Any) -> str:
    """The same text for the same data, independent of the order of entries.

    Raises:
        TypeError: JSON cannot represent something in it.
        ValueError: It contains NaN or an infinity.
    """
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(tree: Any) -> str:
    """SHA-256 of data in its canonical form, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(tree).encode()).hexdigest()


def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's entries; refuses duplicate names, of which JSON readers may use either."""
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"document: holds {name!r:.80} twice in one object")
            seen.add(name)
    return result


def _refuse_constant(name: str) -> float:
    raise ValueError(f"document: holds {name}, which is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"document: found {text:.40}, expected a number that a float can hold")
    return value


def _whole(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"document: found a number of {len(text)} digits, expected at most {_LONGEST_NUMBER}")
    return int(text)


def _check_depth(tree: Any) -> None:
    level, entries = 0, [tree]
    while entries:
        level += 1
        if level > _DEEPEST:
            raise ValueError(f"document: nested more than {_DEEPEST} deep")
        entries = [
            child
            for entry in entries
            if isinstance(entry, (dict, list))
            for child in (entry.values() if isinstance(entry, dict) else entry)
        ]
