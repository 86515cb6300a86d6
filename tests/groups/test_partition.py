"""The bulk union-find against an obviously correct one."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegate.groups.solving.partition import Partition


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40))
def test_partition_agrees_with_merging_sets(pairs: list[tuple[int, int]]) -> None:
    sets = {i: {i} for i in range(20)}
    for a, b in pairs:
        merged = sets[a] | sets[b]
        for member in merged:
            sets[member] = merged
    partition = Partition(20)
    left, right = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    partition.unite(left, right)
    assert partition.roots().tolist() == [min(sets[i]) for i in range(20)]


def test_long_chain_is_one_set() -> None:
    ids = np.arange(100_000)
    partition = Partition(len(ids))
    assert partition.unite(ids[1:], ids[:-1])
    assert not partition.roots().any()
    assert not partition.unite(ids[1:], ids[:-1])
