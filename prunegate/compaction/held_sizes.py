"""Numbers that a module stores: as plain attributes, or in dictionaries, lists and tuples.

An entry of a container is named by its path: ``lengths.d`` is ``self.lengths["d"]``, ``pairs.0.1`` is
``self.pairs[0][1]``. Containers may be shared with other modules, so they are replaced instead of changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

# Limits on the depth of containers, and on the entries of each.
_DEEPEST, _MOST_ENTRIES = 2, 32
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def held(attributes: Mapping[str, Any], name: str) -> Any:
    """The value under a name; None if there is none."""
    if name in attributes:
        return attributes[name]
    first, *rest = name.split(".")
    result = attributes.get(first)
    for part in rest:
        result = dict(_entries(result)).get(part)
    return result


def hold(module: nn.Module, name: str, value: Any) -> None:
    """Replace an existing value."""
    attributes = vars(module)
    if name in attributes:
        setattr(module, name, value)
        return
    first, *rest = name.split(".")
    setattr(module, first, _with(attributes[first], rest, value))


def sizes_in_containers(module: nn.Module) -> dict[int, list[str]]:
    """The integers in a module's own containers: for each, the names of all entries with this value."""
    results: dict[int, list[str]] = {}
    for name, value in vars(module).items():
        if name not in _OF_EVERY_MODULE and type(value) in _CONTAINERS:
            for inner, number in _numbers(value, _DEEPEST):
                results.setdefault(number, []).append(f"{name}.{inner}")
    return results


_CONTAINERS = (dict, list, tuple)


def _entries(container: Any) -> list[tuple[str, Any]]:
    """The entries of a container with their names."""
    if type(container) is dict:
        return [(key, entry) for key, entry in container.items() if type(key) is str and "." not in key]
    return [(str(place), entry) for place, entry in enumerate(container)] if type(container) in (list, tuple) else []


def _numbers(container: Any, depth: int) -> Iterator[tuple[str, int]]:
    if len(container) > _MOST_ENTRIES:
        return
    for name, entry in _entries(container):
        if type(entry) is int:
            yield name, entry
        elif type(entry) in _CONTAINERS and depth > 1:
            yield from ((f"{name}.{inner}", number) for inner, number in _numbers(entry, depth - 1))


def _with(container: Any, names: list[str], value: Any) -> Any:
    """A copy of the container with one entry replaced."""
    if not names:
        return value
    first, *rest = names
    changed = {name: _with(entry, rest, value) if name == first else entry for name, entry in _entries(container)}
    return {**container, **changed} if type(container) is dict else type(container)(changed.values())
