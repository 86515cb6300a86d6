"""Rules for the numbers that a module's code passes to torch functions, and for their values after the cut.

A rule is keyed by the call: the function, the sizes of the tensor it works on, and the numbers it is given. Sizes that
depend on the batch or the length are free, so that a rule covers all of them. In a branch that no rule covers, numbers
are not changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, TypeAlias

import torch

from prunegate.compaction.narrow_attention import Heads

# A number passed to a call: a size, or a value derived from sizes.
Number: TypeAlias = "int | float"
# A number that a rule requires, or None for any.
Size: TypeAlias = "Number | None"


class CannotRewriteError(Exception):
    """Why the numbers in a module's calls cannot be rewritten by rules."""


@dataclass(frozen=True)
class Change:
    """The change of one call.

    Attributes:
        numbers: The new numbers; None keeps a number, a fraction scales it.
        sections: The call is replaced by a split into parts of these sizes, along `dim`.
        positions: Only these positions of the result are kept, along `dim`.
        heads: The call is replaced by an attention with these heads.
    """

    numbers: tuple[Number | Fraction | None, ...]
    sections: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    dim: int = 0
    heads: Heads | None = None

    @property
    def is_none(self) -> bool:
        changed = (self.sections, self.positions, self.heads)
        return all(part is None for part in changed) and all(n is None for n in self.numbers)


@dataclass(frozen=True)
class SizeRule:
    """The change of a function's calls that work on a tensor of these sizes and are given these numbers.

    Attributes:
        turn: Index of the call among those in a forward pass that look the same, from 0; None if all are alike.
        made_of: Which numbers are products of which of the tensor's sizes: (index, first, last + 1). Only set if the
            constant sizes match several rules.
    """

    function: str
    shape: tuple[Size, ...] | None
    given: tuple[Size, ...]
    change: Change
    turn: int | None = None
    made_of: tuple[tuple[int, int, int], ...] = ()

    @property
    def looks(self) -> tuple[Any, ...]:
        """The key by which calls are matched."""
        return self.function, self.shape, self.given, self.made_of

    def fits(self, shape: Sequence[int] | None, given: Sequence[Number]) -> bool:
        """Whether the rule matches a call."""
        if not (_agree(self.shape, shape) and _agree(self.given, given)):
            return False
        return all([given[place] == _product(shape, first, last) for place, first, last in self.made_of])  # noqa: C419

    @property
    def num_fixed(self) -> int:
        """The number of required values; of several matching rules, the one with most applies."""
        return sum(size is not None for size in (*(self.shape or ()), *self.given)) + len(self.made_of)


def _product(shape: Sequence[int] | None, first: int, last: int) -> int:
    product = 1
    for size in (shape or ())[first:last]:
        product = product * size
    return product


def _agree(pattern: Sequence[Size] | None, numbers: Sequence[Number] | None) -> bool:
    if pattern is None or numbers is None:
        return pattern is None and numbers is None
    if len(pattern) != len(numbers):
        return False
    # Compilers do not support strict zip, and both have the same length.
    return all([wanted is None or wanted == size for wanted, size in zip(pattern, numbers)])  # noqa: B905, C419


def numbers_in(tree: Any) -> list[Any]:
    """All numbers in an argument tree, in order, those of slices among them."""
    numbers: list[Any] = []
    _collect(tree, numbers)
    return numbers


def _collect(tree: Any, numbers: list[Any]) -> None:
    if isinstance(tree, bool):
        return
    if isinstance(tree, _NUMBERS):
        numbers.append(tree)
    elif isinstance(tree, (tuple, list)):
        for entry in tree:
            _collect(entry, numbers)
    elif isinstance(tree, dict):
        for entry in tree.values():
            _collect(entry, numbers)
    elif isinstance(tree, slice):
        for entry in (tree.start, tree.stop, tree.step):
            _collect(entry, numbers)


_NUMBERS = (int, float, torch.SymInt)


def with_numbers(tree: Any, numbers: Iterator[Any]) -> Any:
    """The tree with its numbers replaced, in the same order."""
    if isinstance(tree, bool):
        return tree
    if isinstance(tree, _NUMBERS):
        return next(numbers)
    if isinstance(tree, torch.Size):
        return tuple([with_numbers(entry, numbers) for entry in tree])
    if type(tree) in (tuple, list):
        return type(tree)([with_numbers(entry, numbers) for entry in tree])
    if isinstance(tree, dict):
        return {key: with_numbers(value, numbers) for key, value in tree.items()}
    if isinstance(tree, slice):
        return slice(*[with_numbers(entry, numbers) for entry in (tree.start, tree.stop, tree.step)])
    return tree


def first_tensor(args: Any, kwargs: Any) -> torch.Tensor | None:
    """The tensor that a function works on, the first of its arguments; None if there is none."""
    for entry in (*args, *kwargs.values()):
        if isinstance(entry, torch.Tensor):
            return entry
    return None


def shape_of(tensor: torch.Tensor | None) -> tuple[int, ...] | None:
    """A tensor's shape, if there is a tensor."""
    return None if tensor is None else tuple(tensor.shape)


@dataclass(frozen=True)
class Observed:
    """One call observed in a run of the cut model, and its correct form.

    Attributes:
        cut: The cut dimensions of the tensor it works on.
        needed: The correct numbers.
        at: The inputs of its run: the number of samples, and all other sizes.
    """

    function: str
    shape: tuple[int, ...] | None
    cut: tuple[bool, ...]
    given: tuple[Number, ...]
    needed: tuple[Number, ...]
    sections: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    dim: int = 0
    heads: Heads | None = None
    at: tuple[Any, Any] = (0, ())

    @property
    def is_right(self) -> bool:
        """Whether the call is already correct."""
        return self.given == self.needed and self.others == (None, None, None)

    @property
    def others(self) -> tuple[Any, Any, Any]:
        """The required changes besides numbers."""
        return self.sections, self.positions, self.heads


def rule_of(seen: Sequence[Observed]) -> SizeRule:
    """The rule for one position in the code, from observations in runs at different sizes.

    Raises:
        CannotRewriteError: The dependence of its numbers on the sizes cannot be determined.
    """
    first = seen[0]
    # If the runs did not differ in both samples and size, numbers unaffected by channels may depend on either.
    alone = any(len(set(some)) == 1 for some in zip(*(one.at for one in seen), strict=True))
    shape = None
    if first.shape is not None:
        # A size observed once may depend on the batch, unless channels were cut from it.
        sizes = zip(*(one.shape or () for one in seen), strict=True)
        shape = tuple(_common(some) if first.cut[dim] or not alone else None for dim, some in enumerate(sizes))
    given, numbers = [], []
    for place in range(len(first.given)):
        pairs = [(one.given[place], one.needed[place]) for one in seen]
        known, number = _number(pairs)
        is_kept = number is None and first.others == (None, None, None)
        given.append(None if alone and is_kept else known)
        numbers.append(number)
    if len({(*one.others, one.dim) for one in seen}) > 1:
        raise CannotRewriteError(f"the parts that {first.function} makes follow the sizes of the inputs")
    change = Change(tuple(numbers), first.sections, first.positions, first.dim, first.heads)
    return SizeRule(first.function, shape, tuple(given), change)


def _common(numbers: Sequence[Number]) -> Size:
    return numbers[0] if len(set(numbers)) == 1 else None


def _number(pairs: Sequence[tuple[Number, Number]]) -> tuple[Size, Number | Fraction | None]:
    """The required value of a number, and its change."""
    given = _common([one for one, _ in pairs])
    if all(one == needed for one, needed in pairs):
        return given, None
    needed = _common([needed for _, needed in pairs])
    if needed is not None:
        return given, needed
    whole = [(a, b) for a, b in pairs if isinstance(a, int) and isinstance(b, int)]
    ratios = {Fraction(b, a) if a else Fraction(0) for a, b in whole} if len(whole) == len(pairs) else set()
    if len(ratios) != 1:
        raise CannotRewriteError("a number in its code follows the sizes of the inputs in no simple way")
    return given, ratios.pop()


def rules_for(places: Sequence[Sequence[Observed]]) -> tuple[SizeRule, ...]:
    """Rules that correct every call, the most specific ones first.

    Args:
        places: For each position in the code, the observations there, in the order of the calls.

    Raises:
        CannotRewriteError: Two calls that look the same need different numbers, and neither their dependence on the
            tensor's sizes nor their order distinguishes them.
    """
    wrong = {one.function for seen in places for one in seen if not one.is_right}
    concerned = [same for seen in places if seen[0].function in wrong for same in _of_one_form(seen)]
    rules = [rule_of(same) for same in concerned]
    try:
        return _told_apart(rules, concerned)
    except CannotRewriteError as error:
        closer = [replace(rule, made_of=_made_of(seen)) for rule, seen in zip(rules, concerned, strict=True)]
        if closer == rules:
            raise
        try:
            return _told_apart(closer, concerned)
        except CannotRewriteError:
            raise error from None


def _made_of(seen: Sequence[Observed]) -> tuple[tuple[int, int, int], ...]:
    """Which varying numbers always equal one of the tensor's sizes, or the product of two adjacent ones."""
    shape = seen[0].shape or ()
    return tuple(
        (place, first, last)
        for place, numbers in enumerate(zip(*(one.given for one in seen), strict=True))
        if len(set(numbers)) > 1
        for first in range(len(shape))
        for last in (first + 1, first + 2)
        if last <= len(shape) and all(one.given[place] == _product(one.shape, first, last) for one in seen)
    )


def _told_apart(rules: list[SizeRule], concerned: Sequence[Sequence[Observed]]) -> tuple[SizeRule, ...]:
    """The rules, ordered so that each call matches its own first."""
    rules = list(rules)
    alike: dict[Any, list[int]] = {}
    for place, rule in enumerate(rules):
        alike.setdefault(rule.looks, []).append(place)
    for those in alike.values():
        if len({rules[place].change for place in those}) > 1:
            for turn, place in enumerate(those):
                rules[place] = replace(rules[place], turn=turn)
    unique = sorted(dict.fromkeys(rules), key=lambda rule: -rule.num_fixed)
    for rule, seen in zip(rules, concerned, strict=True):
        for one in seen:
            result = next(
                other for other in unique if other.function == one.function and other.fits(one.shape, one.given)
            )
            if result.turn is not None and result.looks == rule.looks:
                result = rule
            change = result.change
            if applied(change, one.given) != list(one.needed) or (
                (change.sections, change.positions, change.heads) != one.others
            ):
                raise CannotRewriteError(f"two of its calls of {one.function} look the same and need other numbers")
    return tuple(unique)


def _of_one_form(seen: Sequence[Observed]) -> list[list[Observed]]:
    """The observations at one position, split by their numbers of dimensions and arguments."""
    forms: dict[tuple[Any, ...], list[Observed]] = {}
    for one in seen:
        forms.setdefault((one.shape and len(one.shape), one.cut, len(one.given)), []).append(one)
    return list(forms.values())


def applied(change: Change, given: Sequence[Any]) -> list[Any]:
    """The changed numbers of a call."""
    result = []
    for number, one in zip(change.numbers, given):  # noqa: B905 -- as long as each other where a rule fits
        if number is None:
            result.append(one)
        elif isinstance(number, Fraction):
            result.append(one * number.numerator // number.denominator)
        else:
            result.append(number)
    return result
