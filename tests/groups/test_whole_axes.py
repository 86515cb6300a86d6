"""Ties of whole axes: recognised only if all indices correspond, and equivalent to ties index by index."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunegate.groups.solving.constraints import Constraints
from prunegate.groups.solving.partition import Ids, Partition
from prunegate.groups.solving.whole_axes import elements_of


def two_axes() -> tuple[Constraints, Ids, Ids]:
    constraints = Constraints()
    return constraints, constraints.new_axis("parameter", "a", 0, 6), constraints.new_axis("parameter", "b", 0, 6)


@pytest.mark.parametrize(
    "arranged",
    [
        lambda ids: ids[::-1],
        lambda ids: ids.reshape(2, 3).T.reshape(-1),
        lambda ids: np.roll(ids, 1),
        lambda ids: ids.copy(),  # nobody knows whose ids these are
    ],
)
def test_rearranged_axes_are_tied_index_by_index(arranged: object) -> None:
    constraints, left, right = two_axes()
    constraints.tie(left, arranged(right))  # type: ignore[operator]
    assert constraints.alike == []
    assert len(constraints.ties) == 1


@pytest.mark.parametrize("shape", [(6,), (1, 6), (1, 6, 1, 1), (2, 3)])
def test_whole_axes_are_tied_at_once_in_any_like_form(shape: tuple[int, ...]) -> None:
    constraints, left, right = two_axes()
    constraints.tie(left.reshape(shape), right.reshape(shape))
    assert constraints.alike == [(0, 1)]
    assert constraints.ties == []


def test_axes_that_broadcast_against_each_other_are_no_whole_tie() -> None:
    constraints, left, right = two_axes()
    constraints.tie(left.reshape(6, 1), right.reshape(1, 6))
    assert constraints.alike == []
    assert constraints.ties[0][0].size == 36


@given(st.data())
def test_elements_and_their_partition_are_those_of_single_ties(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=8))
    constraints = Constraints()
    ids = [constraints.new_axis("parameter", str(i), 0, length) for i, length in enumerate(lengths)]
    same = [(i, j) for i in range(len(ids)) for j in range(len(ids)) if i != j and lengths[i] == lengths[j]]
    singly = Partition(constraints.size)
    for i, j in data.draw(st.lists(st.sampled_from(same), max_size=6)) if same else []:
        constraints.tie(ids[i], ids[j])
        singly.unite(ids[i], ids[j])
    assert constraints.ties == []
    element_of, alike = elements_of(constraints.axes, constraints.alike)
    # Equal elements are equal roots, and elements come in the order of roots.
    assert np.array_equal(np.unique(singly.roots(), return_inverse=True)[1], element_of)
    assert sorted(number for axes in alike for number in axes.stored) == list(range(len(ids)))
    assert sum(axes.length for axes in alike) == element_of.max() + 1
