"""Labels of any form: a tensor whose first dimension is the batch, or lists and dicts of such tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten


def labels_to(labels: Any, device: torch.device) -> Any:
    """The labels on a device, copied without synchronisation."""
    return _mapped(labels, lambda tensor: tensor.to(device, non_blocking=True))


def chunks(labels: Any, count: int) -> list[Any]:
    """Labels in ``count`` parts or fewer, like `torch.Tensor.chunk`."""
    leaves, form = tree_flatten(labels)
    parts = [leaf.chunk(count) if isinstance(leaf, torch.Tensor) else None for leaf in leaves]
    number = max((len(part) for part in parts if part is not None), default=1)
    return [
        tree_unflatten([leaf if part is None else part[n] for leaf, part in zip(leaves, parts, strict=True)], form)
        for n in range(number)
    ]


def between(labels: Any, first: int | None, last: int | None) -> Any:
    """The labels of some samples."""
    return _mapped(labels, lambda tensor: tensor[first:last])


def joined(labels: Sequence[Any]) -> Any:
    """The labels of several batches as one; values that are not tensors come from the first batch."""
    flat = [tree_flatten(part) for part in labels]
    leaves = [
        torch.cat(parts) if isinstance(parts[0], torch.Tensor) else parts[0]
        for parts in zip(*(part for part, _ in flat), strict=True)
    ]
    return tree_unflatten(leaves, flat[0][1])


def hold_tensors(labels: Any) -> bool:
    """Whether there is a tensor among them."""
    return any(isinstance(leaf, torch.Tensor) for leaf in tree_flatten(labels)[0])


def _mapped(labels: Any, change: Any) -> Any:
    return tree_map(lambda leaf: change(leaf) if isinstance(leaf, torch.Tensor) else leaf, labels)
