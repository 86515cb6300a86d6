"""Costs against plain loops."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegate.costs import CostModel, keep_within
from prunegate.groups import LoopNest

UNITS = 9


@st.composite
def nests(draw: st.DrawFn) -> list[LoopNest]:
    axis = st.lists(st.integers(-1, UNITS - 1), min_size=1, max_size=6).map(lambda a: np.array(a, dtype=np.int64))
    one = st.builds(
        lambda constant, axes: LoopNest("m", constant, tuple(axes)),
        st.integers(1, 50),
        st.lists(axis, max_size=3),
    )
    return draw(st.lists(one, min_size=1, max_size=6))


def by_hand(found: list[LoopNest], keep: np.ndarray) -> int:
    return sum(
        nest.constant * math.prod(sum(u < 0 or bool(keep[u]) for u in axis.tolist()) for axis in nest.axes)
        for nest in found
    )


@settings(max_examples=150, deadline=None)
@given(nests(), st.lists(st.booleans(), min_size=UNITS, max_size=UNITS))
def test_exact_and_expected_cost_agree_with_loops(found: list[LoopNest], bits: list[bool]) -> None:
    keep = np.array(bits)
    cost = CostModel(found, UNITS)
    assert cost.exact(keep) == by_hand(found, keep)
    assert int(cost.expected(torch.from_numpy(keep).double())) == by_hand(found, keep)


@settings(max_examples=150, deadline=None)
@given(nests(), st.lists(st.floats(-3, 3), min_size=UNITS, max_size=UNITS), st.floats(0, 1), st.integers(1, 3))
def test_projection_is_affordable_maximal_and_rounded(
    found: list[LoopNest], preference: list[float], share: float, round_to: int
) -> None:
    cost = CostModel(found, UNITS)
    groups = [slice(0, 4), slice(4, 9)]
    limit = int(share * cost.dense())
    keep = keep_within([(cost, limit)], np.array(preference), groups, round_to)
    if keep is None:
        least = np.zeros(UNITS, dtype=bool)
        for group in groups:
            order = group.start + np.argsort(-np.array(preference)[group], kind="stable")
            least[order[:round_to]] = True
        assert cost.exact(least) > limit
        return
    assert cost.exact(keep) <= limit
    for group in groups:
        size = group.stop - group.start
        kept = int(keep[group].sum())
        assert kept == size or (kept > 0 and kept % round_to == 0)
        if kept < size:
            order = group.start + np.argsort(-np.array(preference)[group], kind="stable")
            more = keep.copy()
            more[[u for u in order if not keep[u]][:round_to]] = True
            assert cost.exact(more) > limit


def test_equal_preferences_thin_all_groups_alike() -> None:
    axes = (np.arange(0, 50), np.arange(50, 100))
    cost = CostModel([LoopNest("m", 1, axes)], 100)
    keep = keep_within([(cost, 625)], np.zeros(100), [slice(0, 50), slice(50, 100)])
    assert keep is not None
    assert [int(keep[:50].sum()), int(keep[50:].sum())] == [25, 25]
