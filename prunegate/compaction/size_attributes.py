"""Sizes that a module keeps as plain attributes (``hidden_dim``, ``num_heads``), found by what they equal.

They may stand in containers as well (``lengths["d"]``), where entries of one size are set together. Which attribute
follows which channels is written nowhere. Candidates are the whole numbers of a module that equal the dense size of a
dimension that is cut, in a tensor its own code handles; whether one serves is found by running
(`prunegate.compaction.fix_ups.settle`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from prunegate.compaction.cut_sizes import CutSizes
from prunegate.compaction.held_sizes import held, sizes_in_containers
from prunegate.groups import Span, values_in

# Candidates that are tried for one fault, likeliest first: each costs a run.
_MOST = 8


@dataclass(frozen=True)
class SizeAttribute:
    """An attribute that is to hold the size which a dimension of a tensor of the run has after the cut.

    Attributes:
        number, dim: The tensor on the tape, and its dimension.
    """

    module: str
    name: str
    number: int
    dim: int


def attribute_edits(sizes: CutSizes, attributes: Iterable[SizeAttribute]) -> dict[str, dict[str, int]]:
    """What the attributes become, by module and name."""
    edits: dict[str, dict[str, int]] = {}
    for attribute in attributes:
        edits.setdefault(attribute.module, {})[attribute.name] = sizes.shape(attribute.number)[attribute.dim]
    return edits


def follows(sizes: CutSizes, path: str, old: int, new: int) -> bool:
    """Whether a tensor that the module at ``path`` handles has a dimension that goes from one size to the other."""
    return any(
        sizes.tape.shapes[number][dim] == old and sizes.shape(number)[dim] == new
        for number, dim in _cut_places(sizes, path)
    )


def candidates(
    model: nn.Module, sizes: CutSizes, path: str, taken: Iterable[SizeAttribute]
) -> Iterator[tuple[SizeAttribute, ...]]:
    """Attributes that may cure a fault at ``path``, each with its like in all modules of the same class."""
    module = model.get_submodule(path)
    places = _cut_places(sizes, path)
    known = {(attribute.module, attribute.name) for attribute in taken}
    called = {str(span.target) for span in sizes.tape.spans if isinstance(span.target, str)}
    alike = [p for p, other in model.named_modules() if type(other) is type(module) and p in called]
    result = 0
    together: list[tuple[int, tuple[str, ...]]] = [
        (size, (name,)) for name, size in vars(module).items() if type(size) is int
    ]
    together += [(size, tuple(names)) for size, names in sizes_in_containers(module).items()]
    for size, names in together:
        tried: set[int] = set()
        for place, (number, dim) in enumerate(places if (path, names[0]) not in known else ()):
            if sizes.tape.shapes[number][dim] != size or sizes.shape(number)[dim] in tried:
                continue
            tried.add(sizes.shape(number)[dim])
            result += 1
            if result > _MOST:
                return
            yield tuple(like for name in names for like in _likes(model, sizes, alike, name, place))


def _likes(model: nn.Module, sizes: CutSizes, alike: Iterable[str], name: str, place: int) -> Iterator[SizeAttribute]:
    """The attribute at the same place of every like module, where it holds the size of that place."""
    for path in alike:
        places = _cut_places(sizes, path)
        if place < len(places):
            number, dim = places[place]
            if held(vars(model.get_submodule(path)), name) == sizes.tape.shapes[number][dim]:
                yield SizeAttribute(path, name, number, dim)


def _cut_places(sizes: CutSizes, path: str) -> list[tuple[int, int]]:
    """The dimensions that are cut, of the tensors that the module's own code handles, in order."""
    tape = sizes.tape
    for index, span in enumerate(tape.spans):
        if span.target == path:
            numbers = dict.fromkeys(_own_numbers(sizes, index, span))
            return [(n, d) for n in numbers for d, mask in enumerate(sizes.kept(n)) if mask is not None]
    return []


def _own_numbers(sizes: CutSizes, index: int, span: Span) -> Iterator[int]:
    """Tensors that a module is given, gets from its children, makes itself and returns."""
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
