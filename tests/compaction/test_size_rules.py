"""Rules for the numbers in a module's calls: from observations to changed arguments."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from prunegate.compaction.size_rules import (
    CannotRewriteError,
    Observed,
    applied,
    numbers_in,
    rule_of,
    rules_for,
    with_numbers,
)

SMALL, MORE, LONG = (False, False), (True, False), (True, True)


def view(batch: int, length: int, given: tuple[int, ...], needed: tuple[int, ...], at: tuple[bool, bool]) -> Observed:
    return Observed("view", (batch, length, 12), (False, False, True), given, needed, at=at)


def test_numbers_are_found_and_put_back_in_any_argument() -> None:
    tree = ((torch.zeros(2), [3, (4,)], slice(1, None, 2), torch.Size([5])), {"dim": -1, "keepdim": True, "scale": 0.5})
    assert numbers_in(tree) == [3, 4, 1, 2, 5, -1, 0.5]
    args, kwargs = with_numbers(tree, iter([30, 40, 10, 20, 50, -10, 5.0]))
    assert args[1:] == ([30, (40,)], slice(10, None, 20), (50,))
    assert kwargs == {"dim": -10, "keepdim": True, "scale": 5.0}


def test_sizes_that_follow_the_inputs_are_free_and_others_are_fixed() -> None:
    rule = rule_of(
        [
            view(2, 7, (2, 7, 4, 6), (2, 7, 4, 3), SMALL),
            view(4, 9, (4, 9, 4, 6), (4, 9, 4, 3), LONG),
        ]
    )
    assert (rule.shape, rule.given) == ((None, None, 12), (None, None, 4, 6))
    assert rule.fits((3, 11, 12), (3, 11, 4, 6))
    assert applied(rule.change, (3, 11, 4, 6)) == [3, 11, 4, 3]
    assert not rule.fits((3, 11, 13), (3, 11, 4, 6))
    assert not rule.fits((3, 11, 12), (3, 11, 3, 6))
    assert not rule.fits((3, 11, 12), (33, 4, 6))


def test_what_was_seen_at_one_size_may_follow_it() -> None:
    """Else a branch that only training takes would be frozen to the traced batch."""
    rule = rule_of([view(4, 7, (4, 7, 4, 6), (4, 7, 4, 3), MORE)])
    assert (rule.shape, rule.given) == ((None, None, 12), (None, None, None, 6))


def test_heads_beside_samples_are_scaled() -> None:
    rule = rule_of(
        [
            view(2, 7, (2 * 4, 7, 6), (2 * 2, 7, 6), SMALL),
            view(4, 9, (4 * 4, 9, 6), (4 * 2, 9, 6), LONG),
        ]
    )
    assert rule.change.numbers[0] == Fraction(1, 2)
    assert applied(rule.change, (20, 11, 6)) == [10, 11, 6]


def test_a_number_that_follows_in_no_simple_way_is_refused() -> None:
    with pytest.raises(CannotRewriteError, match="follows the sizes"):
        rule_of([view(2, 7, (8, 7), (4, 7), SMALL), view(4, 9, (16, 9), (9, 9), LONG)])


def test_calls_that_look_the_same_go_by_their_order() -> None:
    first = [view(2, 7, (2, 7, 24), (2, 7, 10), SMALL), view(4, 9, (4, 9, 24), (4, 9, 10), LONG)]
    second = [view(2, 7, (2, 7, 24), (2, 7, 11), SMALL), view(4, 9, (4, 9, 24), (4, 9, 11), LONG)]
    rules = rules_for([first, second, first])
    assert [(rule.turn, rule.change.numbers[2]) for rule in sorted(rules, key=lambda rule: rule.turn or 0)] == [
        (0, 10),
        (1, 11),
        (2, 10),
    ]
    assert [rule.turn for rule in rules_for([first, first])] == [None]


def test_calls_that_sizes_leave_alike_are_told_apart_by_what_their_numbers_are_made_of() -> None:
    """Four heads beside four samples: what was left of 64 channels is as many as a head has."""

    def reshape(shape: tuple[int, ...], given: tuple[int, ...], last: int, at: tuple[bool, bool]) -> Observed:
        return Observed("reshape", shape, (False,) * 4, given, (*given[:-1], last), at=at)

    by_head, merged = [], []
    for batch, length, at in ((2, 16, SMALL), (4, 48, LONG), (4, 16, MORE)):
        by_head.append(reshape((batch, 4, length, 16), (batch * 4, length, 16), 16, at))
        merged.append(reshape((length, batch, 4, 16), (length, batch, 16), 64, at))
    rules = rules_for([by_head, merged])

    def last(shape: tuple[int, ...], given: tuple[int, ...]) -> int:
        return int(applied(next(rule for rule in rules if rule.fits(shape, given)).change, given)[-1])

    for batch in (1, 3, 4, 16):
        for length in (4, 16, 32):
            assert last((batch, 4, length, 16), (batch * 4, length, 16)) == 16
            assert last((length, batch, 4, 16), (length, batch, 16)) == 64


def test_calls_that_are_right_as_they_are_need_no_rules() -> None:
    right = [view(2, 7, (2, 7, 12), (2, 7, 12), SMALL)]
    assert rules_for([right]) == ()
