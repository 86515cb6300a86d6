"""The sizes that a call needs after the cut, derived from its result in the dense run.

There is one function per kind of call. Each gets the dense call, with tape numbers for its tensors, and the arguments
of the call in the cut model, and returns these arguments with the correct sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from prunegate.compaction.attention_calls import heads_of_call
from prunegate.compaction.cut_sizes import CutSizes
from prunegate.compaction.narrow_attention import Heads
from prunegate.compaction.plan import Mask
from prunegate.compaction.size_rules import CannotRewriteError, first_tensor, numbers_in, with_numbers
from prunegate.groups import Value, values_in
from prunegate.groups.following.size_calls import SCALED, SizeCall


@dataclass(frozen=True)
class Needed:
    """The arguments that a call needs; see `prunegate.compaction.size_rules.Change` for the rest."""

    args: Any
    kwargs: Any
    sections: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    dim: int = 0
    heads: Heads | None = None


@dataclass(frozen=True)
class _Dense:
    """A call of the dense run, and the kept positions of its tensors."""

    call: SizeCall
    sizes: CutSizes

    @property
    def input(self) -> int:
        """The number of the tensor it works on."""
        for value in (*self.call.args, *self.call.kwargs.values()):
            if isinstance(value, Value):
                return value.number
        raise CannotRewriteError(f"{self.call.function} works on no tensor")

    @property
    def result(self) -> int:
        if not isinstance(self.call.result, Value):
            raise CannotRewriteError(f"{self.call.function} returns no tensor")
        return self.call.result.number

    @property
    def shape(self) -> tuple[int, ...]:
        """The result's shape after the cut."""
        return self.sizes.shape(self.result)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.sizes.tape.shapes[self.input]

    def kept(self, dim: int) -> Mask | None:
        """The kept positions of the tensor it works on, along a dimension."""
        return self.sizes.kept(self.input)[dim]

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        return _argument(self.call.args, self.call.kwargs, place, name, default)


_Rule: TypeAlias = Callable[[_Dense, Any, Any], Needed]


def needed(call: SizeCall, sizes: CutSizes, args: Any, kwargs: Any) -> Needed:
    """The arguments that a call needs.

    Raises:
        CannotRewriteError: No numbers would be correct.
    """
    return _RULES[call.function](_Dense(call, sizes), args, kwargs)


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any], place: int, name: str, default: Any = None) -> Any:
    return args[place] if place < len(args) else kwargs.get(name, default)


def _replaced(args: Any, kwargs: Any, place: int, name: str, value: Any) -> tuple[Any, Any]:
    if place < len(args):
        return (*args[:place], value, *args[place + 1 :]), kwargs
    return args, ({**kwargs, name: value} if name in kwargs else kwargs)


def _shape(dense: _Dense, args: Any, kwargs: Any) -> Needed:
    """Calls whose numbers start with the shape of the result."""
    shape = dense.shape
    numbers = numbers_in((args, kwargs))
    if len(numbers) < len(shape):  # a view as another dtype
        return Needed(args, kwargs)
    moved = _moved(dense, args, kwargs)
    told = [
        given if given == -1 or (mask is None and moved.get(size) == given) else size
        for given, size, mask in zip(numbers, shape, dense.sizes.kept(dense.result), strict=False)
    ]
    args, kwargs = with_numbers((args, kwargs), iter([*told, *numbers[len(shape) :]]))
    return Needed(args, kwargs)


def _moved(dense: _Dense, args: Any, kwargs: Any) -> dict[int, int]:
    """Sizes of its tensor that depend on values and differ in this run: from the dense run's to the current ones."""
    tensor = first_tensor(args, kwargs)
    if dense.sizes.is_fixed or tensor is None or tensor.dim() != len(dense.input_shape):
        return {}
    kept = dense.sizes.kept(dense.input)
    return {
        before: now
        for before, now, mask in zip(dense.input_shape, tensor.shape, kept, strict=True)
        if mask is None and before != now
    }


def _unflatten(dense: _Dense, args: Any, kwargs: Any) -> Needed:
    dim = int(_argument(args, kwargs, 1, "dim")) % len(dense.input_shape)
    given = _argument(args, kwargs, 2, "sizes")
    new = dense.shape[dim : dim + len(given)]
    new = tuple(-1 if one == -1 else size for one, size in zip(given, new, strict=True))
    return Needed(*_replaced(args, kwargs, 2, "sizes", type(given)(new) if type(given) is list else new))


def _split(dense: _Dense, args: Any, kwargs: Any) -> Needed:
    """Parts with the kept sizes, in the requested form if possible."""
    dim = int(_argument(args, kwargs, 2, "dim", 0)) % len(dense.input_shape)
    parts = tuple(dense.sizes.shape(value.number)[dim] for value in values_in(dense.call.result))
    name = next((n for n in kwargs if n not in ("dim", "input", "tensor")), "")
    given = args[1] if len(args) > 1 else kwargs.get(name)
    if isinstance(given, (list, tuple)) and "split" in dense.call.function and len(given) == len(parts):
        return Needed(*_replaced(args, kwargs, 1, name, type(given)(parts) if type(given) is list else parts))
    if isinstance(given, (int, torch.SymInt)) and parts:
        if dense.call.function in ("split", "unsafe_split") and parts == _by_size(sum(parts), parts[0]):
            return Needed(*_replaced(args, kwargs, 1, name, parts[0]))
        if dense.call.function in ("chunk", "unsafe_chunk") and parts == _by_size(
            sum(parts), int(-(-sum(parts) // given))
        ):
            return Needed(args, kwargs)
    return Needed(args, kwargs, sections=parts, dim=dim)


def _by_size(total: int, size: int) -> tuple[int, ...]:
    whole, rest = divmod(total, max(size, 1))
    return (size,) * whole + ((rest,) if rest else ())


def _places(mask: Mask, picked: Sequence[int]) -> list[int]:
    """New indices of the kept ones among some positions."""
    places = np.cumsum(mask) - 1
    return [int(places[position]) for position in picked if mask[position]]


def _index(dense: _Dense, args: Any, kwargs: Any) -> Needed:
    given, before = args[1], dense.call.args[1]
    parts, dense_parts = (one if isinstance(one, tuple) else (one,) for one in (given, before))
    if len(parts) != len(dense_parts):
        return Needed(args, kwargs)
    taken = sum(_dims_of(dense, part) for part in dense_parts)
    new: list[Any] = []
    dim = result_dim = 0
    positions: tuple[int, ...] | None = None
    along = 0
    for part, dense_part in zip(parts, dense_parts, strict=True):
        if part is None:
            new.append(part)
            result_dim += 1
            continue
        if part is Ellipsis:
            new.append(part)
            left = len(dense.input_shape) - taken
            dim, result_dim = dim + left, result_dim + left
            continue
        mask = dense.kept(dim) if isinstance(part, (int, slice, torch.SymInt)) and not isinstance(part, bool) else None
        if mask is None:
            new.append(part)
        elif isinstance(part, slice):
            part, some = _slice(part, dense_part, mask)
            if some is not None:
                if positions is not None:
                    raise CannotRewriteError("several strides in one index")
                positions, along = some, result_dim
            new.append(part)
        else:
            place = int(dense_part) % len(mask)
            if not mask[place]:
                raise CannotRewriteError("its code picks one channel, which is removed")
            new.append(int(mask[:place].sum()))
        dim += _dims_of(dense, dense_part)
        result_dim += 0 if isinstance(part, int) else 1
    index = tuple(new) if isinstance(given, tuple) else new[0]
    return Needed((args[0], index, *args[2:]), kwargs, positions=positions, dim=along)


def _dims_of(dense: _Dense, part: Any) -> int:
    """How many dimensions a part of an index covers."""
    if part is None or part is Ellipsis or isinstance(part, bool):
        return 0
    if isinstance(part, Value) and dense.sizes.tape.dtypes[part.number] is torch.bool:
        return len(dense.sizes.tape.shapes[part.number])
    return 1


def _slice(given: slice, before: slice, mask: Mask) -> tuple[slice, tuple[int, ...] | None]:
    """The slice of the kept positions, and the indices to pick from it if a slice is not enough."""
    places = _places(mask, range(*before.indices(len(mask))))
    length = int(mask.sum())
    first, last = (places[0], places[-1] + 1) if places else (0, 0)
    if places == list(range(first, last)) and (given.start is not None or first == 0):
        stop = last if given.stop is not None else None
        if stop is not None or last == length:
            start = first if given.start is not None else None
            return slice(start, stop, 1 if given.step is not None else None), None
    whole = slice(0 if given.start is not None else None, length if given.stop is not None else None,
                  1 if given.step is not None else None)  # fmt: skip
    return whole, tuple(places)


def _narrow(dense: _Dense, args: Any, kwargs: Any) -> Needed:
    dim = int(_argument(args, kwargs, 1, "dim")) % len(dense.input_shape)
    mask = dense.kept(dim)
    if mask is None:
        return Needed(args, kwargs)
    start, length = int(dense.argument(2, "start")), int(dense.argument(3, "length"))
    places = _places(mask, range(start, start + length))
    first = places[0] if places else 0
    if places != list(range(first, first + len(places))):
        raise CannotRewriteError("the positions that it narrows to are not contiguous")
    args, kwargs = _replaced(args, kwargs, 2, "start", first)
    return Needed(*_replaced(args, kwargs, 3, "length", len(places)))


def _select(dense: _Dense, args: Any, kwargs: Any) -> Needed:
    dim = int(_argument(args, kwargs, 1, "dim")) % len(dense.input_shape)
    mask = dense.kept(dim)
    if mask is None:
        return Needed(args, kwargs)
    place = int(dense.argument(2, "index")) % len(mask)
    return Needed(*_replaced(args, kwargs, 2, "index", int(mask[:place].sum())))


def _repeat(dense: _Dense, args: Any, kwargs: Any) -> Needed:
    shape, before = dense.shape, dense.sizes.shape(dense.input)
    before = (1,) * (len(shape) - len(before)) + tuple(before)
    numbers = numbers_in((args, kwargs))
    if len(numbers) != len(shape) or any(a % b for a, b in zip(shape, before, strict=True) if b):
        raise CannotRewriteError("its number of repeats cannot be determined")
    times = iter([a // b if b else 1 for a, b in zip(shape, before, strict=True)])
    args, kwargs = with_numbers((args, kwargs), times)
    return Needed(args, kwargs)


def _pad(dense: _Dense, args: Any, kwargs: Any) -> Needed:
    """Padding with the kept number of the entries that the dense run added on each side."""
    pad = list(_argument(args, kwargs, 1, "pad"))
    for dim, mask in enumerate(reversed(dense.sizes.kept(dense.result))):
        if mask is not None and 2 * dim + 1 < len(pad):
            before, after = (int(n) for n in dense.argument(1, "pad")[2 * dim : 2 * dim + 2])
            pad[2 * dim] = int(mask[: max(before, 0)].sum()) if before > 0 else before
            pad[2 * dim + 1] = int(mask[len(mask) - max(after, 0) :].sum()) if after > 0 else after
    return Needed(*_replaced(args, kwargs, 1, "pad", type(_argument(args, kwargs, 1, "pad"))(pad)))


def _normalised(dense: _Dense, args: Any, kwargs: Any) -> Needed:
    given = tuple(_argument(args, kwargs, 1, "normalized_shape"))
    return Needed(*_replaced(args, kwargs, 1, "normalized_shape", dense.sizes.shape(dense.input)[-len(given) :]))


def _groups(place: int, name: str) -> _Rule:
    """Calls with an argument for the number of channel groups."""

    def rule(dense: _Dense, args: Any, kwargs: Any) -> Needed:
        groups = int(dense.argument(place, name, 1))
        channels = dense.kept(1) if len(dense.input_shape) > 1 else None
        left = groups if channels is None else int(channels.reshape(groups, -1).any(axis=1).sum())
        return Needed(*_replaced(args, kwargs, place, name, left))

    return rule


def _scaled(dense: _Dense, args: Any, kwargs: Any) -> Needed:
    """Calls that compute with numbers: those of the gated model, which has all channels."""
    numbers = numbers_in((dense.call.args, dense.call.kwargs))
    if len(numbers) != len(numbers_in((args, kwargs))):
        raise CannotRewriteError(f"{dense.call.function} is given other arguments than in the dense run")
    args, kwargs = with_numbers((args, kwargs), iter(numbers))
    return Needed(args, kwargs)


def _table(dense: _Dense, args: Any, kwargs: Any) -> Needed:
    """Calls whose entries depend on their position, also random ones: computed at full size, then cut."""
    numbers: Iterator[Any] = iter(numbers_in((dense.call.args, dense.call.kwargs)))
    args, kwargs = with_numbers((args, kwargs), numbers)
    kept = dense.sizes.kept(dense.result)
    cut = [(dim, mask) for dim, mask in enumerate(kept) if mask is not None]
    if len(cut) > 1:
        raise CannotRewriteError("a table that is cut along two dimensions")
    for dim, mask in cut:
        return Needed(args, kwargs, positions=tuple(np.flatnonzero(mask).tolist()), dim=dim)
    return Needed(args, kwargs)


def _attention(dense: _Dense, args: Any, kwargs: Any) -> Needed:
    return Needed(args, kwargs, heads=heads_of_call(dense.call, dense.sizes))


_RULES: dict[str, _Rule] = {
    "multi_head_attention_forward": _attention,
    **dict.fromkeys(SCALED, _scaled),
    **dict.fromkeys(
        """view reshape expand broadcast_to new_zeros new_ones new_empty new_full zeros ones empty full""".split(),
        _shape,
    ),
    "unflatten": _unflatten,
    **dict.fromkeys("split split_with_sizes unsafe_split chunk unsafe_chunk tensor_split".split(), _split),
    "getitem": _index,
    "narrow": _narrow,
    "pad": _pad,
    "select": _select,
    **dict.fromkeys("repeat tile".split(), _repeat),
    **dict.fromkeys("layer_norm rms_norm".split(), _normalised),
    "group_norm": _groups(1, "num_groups"),
    **dict.fromkeys("conv1d conv2d conv3d".split(), _groups(6, "groups")),
    **dict.fromkeys("conv_transpose1d conv_transpose2d conv_transpose3d".split(), _groups(6, "groups")),
    **dict.fromkeys("arange linspace eye rand randn".split(), _table),
}
