"""Labels: which unit each index of a tensor belongs to.

A label is an integer array that broadcasts against its tensor: it has full size along the dimensions on which the unit
depends, and size 1 along the others and along those of length 0. Its entries are ids issued by `Constraints`. A tensor
carries a tuple of labels, at most one per dimension. Labels are NumPy arrays, so that the dispatch modes that watch the
model do not see arithmetic on them.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from prunegate.groups.solving.partition import Ids

Labels: TypeAlias = tuple[Ids, ...]
Shape: TypeAlias = tuple[int, ...]


def varying(label: Ids) -> tuple[int, ...]:
    """The dimensions along which a label has more than one entry."""
    return tuple([d for d, size in enumerate(label.shape) if size > 1])


def along(labels: Labels, dim: int) -> Ids | None:
    """The label that varies along ``dim``, if there is one."""
    for label in labels:
        if label.shape[dim] > 1:
            return label
    return None


def align(label: Ids, ndim: int) -> Ids:
    """The label with leading dimensions of size 1 added, as broadcasting does."""
    return label.reshape((1,) * (ndim - label.ndim) + label.shape)


def pick(label: Ids, index: int, dim: int) -> Ids:
    """The label of ``x.select(dim, index)``, without this dimension."""
    return np.asarray(label.take(index if label.shape[dim] > 1 else 0, axis=dim))


def on_axis(ids: Ids, dim: int, ndim: int) -> Ids:
    """A flat array of ids laid along dimension ``dim`` of ``ndim``."""
    shape = [1] * ndim
    shape[dim] = ids.size
    return ids.reshape(shape)


def collapse(label: Ids) -> Ids:
    """The label narrowed to size 1 along every dimension on which all its entries are equal."""
    for dim in varying(label):
        corner = [0] * label.ndim
        start, corner[dim] = label.item(*corner), -1
        if start != label.item(*corner):  # the usual case, and quick
            continue
        first = label.take([0], axis=dim)
        if (label == first).all():
            label = first
    return label


def reshaped(label: Ids, before: Shape, after: Shape) -> Ids:
    """The label of ``x.reshape(after)`` for a tensor of shape ``before``.

    Runs of dimensions with equal products are matched first, so that the label is expanded only
    within the runs on which it varies: tokens and pixels never multiply its size.
    """
    label_view: list[int] = []
    result: list[int] = []
    for run_before, run_after in _matching_runs(before, after):
        if all(label.shape[d] == 1 for d in run_before):
            label_view += [1] * len(run_before)
            result += [1] * len(run_after)
        else:
            label_view += [before[d] for d in run_before]
            result += [after[d] for d in run_after]
    return np.broadcast_to(label, label_view).reshape(result)


def _matching_runs(before: Shape, after: Shape) -> list[tuple[range, range]]:
    """Split two shapes of one element count into the shortest runs of dimensions with equal products."""
    runs: list[tuple[range, range]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        start_i, start_j = i, j
        product_i = product_j = 1
        if i < len(before):
            product_i, i = before[i], i + 1
        if j < len(after):
            product_j, j = after[j], j + 1
        while product_i != product_j:
            if product_i < product_j and i < len(before):
                product_i, i = product_i * before[i], i + 1
            elif j < len(after):
                product_j, j = product_j * after[j], j + 1
            else:
                product_i, i = product_i * before[i], i + 1
        runs.append((range(start_i, i), range(start_j, j)))
    return runs
