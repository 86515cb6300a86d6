"""Disjoint sets of ids, united in bulk: thousands of pairs in a few array operations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


class Partition:
    """A union-find over the ids ``0 .. size - 1`` whose operations take arrays.

    A set is named by its smallest id, its *root*. Every id starts as a set of its own.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._root: Ids = np.arange(size, dtype=np.int64)

    def copy(self) -> Partition:
        """An independent copy."""
        made = Partition(0)
        made.size, made._root = self.size, self._root.copy()
        return made

    def roots(self, ids: Ids | None = None) -> Ids:
        """The root of each of ``ids`` (of all ids by default), in their shape."""
        return self._root if ids is None else self._root[ids]

    def unite(self, left: Ids, right: Ids) -> bool:
        """Join the sets of ``left[i]`` and ``right[i]`` for every i; return whether anything changed.

        Each round hooks every root onto the smallest root it is paired with and then flattens all
        paths, so the number of rounds grows with the logarithm of the longest chain.
        """
        changed = False
        root = self._root
        while True:
            a, b = root[left], root[right]
            differ = a != b
            if not differ.any():
                return changed
            changed = True
            left, right = a[differ], b[differ]
            np.minimum.at(root, np.maximum(left, right), np.minimum(left, right))
            while True:
                flatter = root[root]
                if np.array_equal(flatter, root):
                    break
                root[:] = flatter
