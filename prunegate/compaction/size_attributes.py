"""Sizes that a module stores as plain attributes (``hidden_dim``, ``num_heads``), found by their values.

They may also be in containers (``lengths["d"]``), where entries of the same size are set together. Nothing says which
attribute follows which channels. Candidates are a module's integers that equal the dense size of a cut dimension of a
tensor in its own code; whether one works is found by running (`prunegate.compaction.fix_ups.settle`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from prunegate.compaction.cut_sizes import CutSizes
from prunegate.compaction.held_sizes import held, sizes_in_containers
from prunegate.groups import Span, values_in

# Candidates that are tried for one fault, the most likely first, as each costs a run.
_MOST = 8


@dataclass(frozen=True)
class SizeAttribute:
    """An attribute to be set to the size of a dimension of a tensor after the cut.

    Attributes:
        number, dim: The tensor on the tape, and its dimension.
    """

    module: str
    name: str
    number: int
    dim: int


def attribute_edits(sizes: CutSizes, attributes: Iterable[SizeAttribute]) -> dict[str, dict[str, int]]:
    """The new values of the attributes, by module and name."""
    edits: dict[str, dict[str, int]] = {}
    for attribute in attributes:
        edits.setdefault(attribute.module, {})[attribute.name] = sizes.shape(attribute.number)[attribute.dim]
    return edits


def follows(sizes: CutSizes, path: str, old: int, new: int) -> bool:
    """Whether a tensor in the module at ``path`` has a dimension whose size changes from ``old`` to ``new``."""
    return any(
        sizes.tape.shapes[number][dim] == old and sizes.shape(number)[dim] == new
        for number, dim in _cut_places(sizes, path)
    )


def candidates(
    model: nn.Module, sizes: CutSizes, path: str, taken: Iterable[SizeAttribute]
) -> Iterator[tuple[SizeAttribute, ...]]:
    """Attributes that may fix a fault at ``path``, each with its counterparts in all modules of the same class."""
    module = model.get_submodule(path)
    places = _cut_places(sizes, path)
    known = {(attribute.module, attribute.name) for attribute in taken}
    called = {str(span.target) for span in sizes.tape.spans if isinstance(span.target, str)}
    alike = [p for p, other in model.named_modules() if type(other) is type(module) and p in called]
    together: list[tuple[int, tuple[str, ...]]] = [
        (size, (name,)) for name, size in vars(module).items() if type(size) is int
    ]
    together += [(size, tuple(names)) for size, names in sizes_in_containers(module).items()]
    found: list[tuple[int, tuple[str, ...], int]] = []
    for size, names in together:
        tried: set[int] = set()
        for place, (number, dim) in enumerate(places if (path, names[0]) not in known else ()):
            if sizes.tape.shapes[number][dim] == size and sizes.shape(number)[dim] not in tried:
                found.append((len(tried), names, place))
                tried.add(sizes.shape(number)[dim])
    # Every attribute has its first size tried before any has its second, should they be too many.
    most = sorted(rank for rank, _, _ in found)[:_MOST]
    last, left = (most[-1], most.count(most[-1])) if most else (0, 0)
    for rank, names, place in found:
        left -= rank == last
        if rank < last or (rank == last and left >= 0):
            likes = (like for name in names for like in _likes(model, sizes, alike, name, place))
            yield tuple(like for like in likes if (like.module, like.name) not in known)


def _likes(model: nn.Module, sizes: CutSizes, alike: Iterable[str], name: str, place: int) -> Iterator[SizeAttribute]:
    """The corresponding attribute of every module of the class, if it equals the size of the corresponding
    dimension."""
    for path in alike:
        places = _cut_places(sizes, path)
        if place < len(places):
            number, dim = places[place]
            if held(vars(model.get_submodule(path)), name) == sizes.tape.shapes[number][dim]:
                yield SizeAttribute(path, name, number, dim)


def _cut_places(sizes: CutSizes, path: str) -> list[tuple[int, int]]:
    """The cut dimensions of the tensors in the module's own code, in order."""
    tape = sizes.tape
    for index, span in enumerate(tape.spans):
        if span.target == path:
            numbers = dict.fromkeys(_own_numbers(sizes, index, span))
            return [(n, d) for n in numbers for d, mask in enumerate(sizes.kept(n)) if mask is not None]
    return []


def _own_numbers(sizes: CutSizes, index: int, span: Span) -> Iterator[int]:
    """A module's inputs, its children's outputs, and the tensors that it makes and returns."""
    tape = sizes.tape
    yield from (value.number for value in values_in((span.args, span.kwargs)))
    place, inner = span.first, index + 1
    while inner < span.until:
        child = tape.spans[inner]
        for operation in tape.operations[place : child.first]:
            yield from operation.results
        yield from (value.number for value in values_in(child.result))
        place, inner = child.last, child.until
    for operation in tape.operations[place : span.last]:
        yield from operation.results
    yield from (value.number for value in values_in(span.result))
