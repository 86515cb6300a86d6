"""The tape: every operation of one run, in order, with tensors replaced by numbers.

Compaction replays parts of it with other sizes if a module's own code cannot run on its smaller tensors
(`prunegate.compaction.replaying`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from prunegate.groups.following.size_calls import SizeCall, SizeCallKey
from prunegate.groups.solving.labels import Labels, Shape


@dataclass(slots=True, unsafe_hash=True)  # never changed; frozen dataclasses are slower to create
class Value:
    """A reference to a tensor of the tape by number, in an argument or result."""

    number: int


@dataclass(frozen=True)
class Source:
    """The source of a tensor that no operation made; ``tensor`` is the data of a literal."""

    kind: Literal["stored", "input", "literal"]
    name: str = ""
    tensor: torch.Tensor | None = None


# Their results are views, although their schemas do not say so.
_VIEWS = frozenset({"aten::_unsafe_view", "aten::_reshape_alias"})


@dataclass(slots=True)  # never changed, like `Value`
class Operation:
    """One call of an operation; ``results`` are the numbers of the tensors it returned."""

    func: torch._ops.OpOverload
    args: Any
    kwargs: Any
    results: tuple[int, ...]
    is_sequence: bool

    @property
    def is_view(self) -> bool:
        """Whether it returns its operand in another form, without work."""
        return self._aliases(written=False)

    @property
    def shares_memory(self) -> bool:
        """Whether its results are views of its first operand, or the operand itself, written in place."""
        return self._aliases(written=True)

    def _aliases(self, written: bool) -> bool:
        schema = self.func._schema
        if schema.name in _VIEWS:
            return True
        return bool(schema.returns) and all(
            r.alias_info is not None and (written or not r.alias_info.is_write) for r in schema.returns
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the operation's name, as torch's object cannot be pickled."""
        return _operation, (str(self.func), self.args, self.kwargs, self.results, self.is_sequence)


def _operation(name: str, *others: Any) -> Operation:
    space, packet, overload = name.split(".")
    return Operation(getattr(getattr(getattr(torch.ops, space), packet), overload), *others)


@dataclass(slots=True)
class Span:
    """The operations of one call of a module or of a function.

    Attributes:
        target: The module's path, or the function.
        first, last: The operations are ``tape.operations[first:last]``.
        until: The nested spans are the next ones on the tape, up to this number.
        returns_argument: It returned one of its arguments unchanged.
    """

    target: str | Callable[..., Any]
    args: Any
    kwargs: Any
    first: int
    last: int = -1
    until: int = -1
    result: Any = None
    returns_argument: bool = False


@dataclass
class Tape:
    """All operations of a run, the calls they belong to in the order of their starts, and every tensor's form.

    Attributes:
        sized: The calls of functions that take sizes.
    """

    operations: list[Operation] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    sized: dict[SizeCallKey, SizeCall] = field(default_factory=dict)
    shapes: list[Shape] = field(default_factory=list)
    dtypes: list[torch.dtype] = field(default_factory=list)
    labels: list[Labels] = field(default_factory=list)
    sources: dict[int, Source] = field(default_factory=dict)
    same_as: dict[int, int] = field(default_factory=dict)
    _numbers: dict[int, int] = field(default_factory=dict)
    _alive: list[torch.Tensor] = field(default_factory=list)
    _unlabelled: set[int] = field(default_factory=set)

    def add(self, tensor: torch.Tensor, labels: Labels = (), source: Source | None = None) -> int:
        """A new number for ``tensor``, even if it has one, as it was written to or passed through a call."""
        return self._add(tensor, tuple(tensor.shape), tensor.dtype, labels, source)

    def _add(
        self, tensor: torch.Tensor, shape: Shape, dtype: torch.dtype, labels: Labels, source: Source | None = None
    ) -> int:
        number = len(self.shapes)
        self.shapes.append(shape)
        self.dtypes.append(dtype)
        self.labels.append(labels)
        self._alive.append(tensor)
        self._numbers[id(tensor)] = number
        if source is not None:
            self.sources[number] = source
        return number

    def number(self, tensor: torch.Tensor, labels: Labels = ()) -> int:
        """The current number of a tensor; an unknown tensor is a literal of the model's code."""
        result = self._numbers.get(id(tensor))
        if result is None:
            result = self.add(tensor, labels, Source("literal", "", tensor))
            self._unlabelled.add(result)
        return result

    def label(self, tensor: torch.Tensor, labels: Callable[[torch.Tensor], Labels]) -> None:
        """Give a literal its labels, at the first operation that uses it."""
        result = self._numbers.get(id(tensor))
        if result is None or result in self._unlabelled:
            result = self.number(tensor)
            self.labels[result] = labels(tensor)
            self._unlabelled.discard(result)

    def root(self, number: int) -> int:
        """The number under which an operation made a tensor that has got others since."""
        while number in self.same_as:
            number = self.same_as[number]
        return number

    def renumber(self, tree: Any) -> Any:
        """New numbers for the tensors of a call's result, so that they are identified as its results."""

        def again(tensor: torch.Tensor) -> Value:
            before = self.number(tensor)
            number = self._add(tensor, self.shapes[before], self.dtypes[before], self.labels[before])
            self.same_as[number] = before
            return Value(number)

        return again(tree) if isinstance(tree, torch.Tensor) else map_tensors(tree, again)

    def refer(self, tree: Any) -> Any:
        """An argument tree with numbers instead of tensors."""
        if isinstance(tree, torch.Tensor):
            return Value(self.number(tree))
        if type(tree) is dict and not tree:
            return {}
        if type(tree) is list and _ATOMS.issuperset(map(type, tree)):
            return tree[:]
        if type(tree) is tuple:  # fast path: arguments are mostly tensors and numbers
            return tuple(
                [
                    entry
                    if type(entry) in _ATOMS
                    else Value(self.number(entry))
                    if isinstance(entry, torch.Tensor)
                    else self.refer(entry)
                    for entry in tree
                ]
            )
        return map_tensors(tree, lambda tensor: Value(self.number(tensor)))

    def lacks_literals(self) -> bool:
        """Whether the data of a constant in the model's code is missing."""
        return any(s.tensor is not None and s.tensor.is_meta for s in self.sources.values())

    def close(self) -> None:
        """Release the tensors after the run, except literals."""
        self._numbers.clear()
        self._alive.clear()


def map_tensors(tree: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """``tree`` with its tensors changed; containers become plain ones, output classes a `Record`."""
    return _map(tree, change, torch.Tensor)


def map_values(tree: Any, change: Callable[[Value], Any]) -> Any:
    """``tree`` with its `Value` entries changed."""
    return _map(tree, change, Value)


def holds(tree: Any, value: Value) -> bool:
    """Whether a tree contains this tensor."""
    if type(tree) is tuple and _FLAT.issuperset(map(type, tree)):
        return value in tree
    return bool(tree) and value in values_in(tree)


def values_in(tree: Any) -> list[Value]:
    """All `Value` entries of a tree, in order."""
    results: list[Value] = []
    map_values(tree, results.append)
    return results


@dataclass(frozen=True)
class Record:
    """An output object with named fields (a dataclass, a Hugging Face ModelOutput, a named tuple)."""

    cls: type
    fields: Mapping[str, Any]


_ATOMS = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device})
_FLAT = _ATOMS | {Value}


def _map(tree: Any, change: Callable[[Any], Any], of: type) -> Any:
    """``tree`` with its leaves of one type changed."""
    cls = type(tree)
    if cls in _ATOMS:
        return tree
    if cls is tuple or cls is list:
        return cls([entry if type(entry) in _ATOMS else _map(entry, change, of) for entry in tree])
    if cls is dict:
        return {key: _map(value, change, of) for key, value in tree.items()}
    if isinstance(tree, of):
        return change(tree)
    if isinstance(tree, torch.Tensor | Value):
        return tree
    if isinstance(tree, Record):
        return Record(tree.cls, {key: _map(value, change, of) for key, value in tree.fields.items()})
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return Record(cls, {key: _map(getattr(tree, key), change, of) for key in tree._fields})
    if isinstance(tree, dict):
        return Record(cls, {key: _map(value, change, of) for key, value in tree.items()})
    if isinstance(tree, torch.Size):
        return tuple(tree)
    if isinstance(tree, list | tuple):
        return cls(_map(entry, change, of) for entry in tree)
    if hasattr(tree, "__dataclass_fields__") and not isinstance(tree, type):
        fields = {key: getattr(tree, key) for key in tree.__dataclass_fields__}
        if any(isinstance(value, torch.Tensor | Value | list | tuple | dict) for value in fields.values()):
            return Record(cls, {key: _map(value, change, of) for key, value in fields.items()})
    return tree
