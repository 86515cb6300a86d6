"""The form of frequent operations' results, without the code in Python that torch keeps for the meta device.

Some of torch's kernels for the meta device take milliseconds where the answer is one tensor like another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

_aten = torch.ops.aten

# Gives the result, or NotImplemented where the arguments are not of the plain kind.
Form: TypeAlias = Callable[[Sequence[Any]], Any]


def run(func: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What ``func(*args, **kwargs)`` returns; for frequent operations on meta tensors by a short cut."""
    form = None if kwargs else _FORMS.get(func)
    if form is not None and (form is _join or _is_plain(args[0])):
        result = form(args)
        if result is not NotImplemented:
            return result
    return func(*args, **kwargs)


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.is_meta and type(tensor) in (torch.Tensor, nn.Parameter) and tensor.is_contiguous()


def _itself(args: Sequence[Any]) -> Any:
    return args[0]


def _alike(args: Sequence[Any]) -> Any:
    return torch.empty_like(args[0])


def _broadcast(args: Sequence[Any]) -> Any:
    left, right = args[:2]
    if not isinstance(right, torch.Tensor) or left.dtype != right.dtype or not _is_plain(right) or len(args) > 2:
        return NotImplemented
    return torch.empty_like(left) if left.shape == right.shape else NotImplemented


def _mean(args: Sequence[Any]) -> Any:
    x, dims, keep = (*args, False)[:3]
    if not dims or len(args) > 3:
        return NotImplemented
    gone = {dim % x.dim() for dim in dims}
    return x.new_empty([1 if d in gone else n for d, n in enumerate(x.shape) if keep or d not in gone])


def _join(args: Sequence[Any]) -> Any:
    tensors, dim = (*args, 0)[:2]
    first = tensors[0]
    if any(t.dtype != first.dtype or t.dim() != first.dim() or not _is_plain(t) for t in tensors):
        return NotImplemented
    shape = list(first.shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    return first.new_empty(shape)


def _affine(args: Sequence[Any]) -> Any:
    _, left, right, *_ = args
    return left.new_empty(left.shape[0], right.shape[1])


def _batch_norm(args: Sequence[Any]) -> tuple[torch.Tensor, ...]:
    """The normalised input, and the statistics of the batch where it is in training."""
    x, size = args[0], args[0].shape[1] if args[5] else 0
    return torch.empty_like(x), x.new_empty(size), x.new_empty(size)


def _layer_norm(args: Sequence[Any]) -> tuple[torch.Tensor, ...]:
    x, over = args[0], len(args[1])
    statistics = [x.new_empty(*x.shape[: x.dim() - over], *[1] * over) for _ in range(2)]
    return torch.empty_like(x), *statistics


_FORMS: Mapping[Any, Form] = {
    _aten.native_batch_norm.default: _batch_norm,
    _aten.native_layer_norm.default: _layer_norm,
    _aten.addmm.default: _affine,
    _aten.mean.dim: _mean,
    _aten.cat.default: _join,
    **dict.fromkeys((_aten.add.Tensor, _aten.mul.Tensor), _broadcast),
    **dict.fromkeys((_aten.hardtanh_.default, _aten.relu_.default, _aten.silu_.default), _itself),
    **dict.fromkeys(
        (_aten.hardtanh.default, _aten.gelu.default, _aten.silu.default, _aten.relu.default, _aten.sigmoid.default),
        _alike,
    ),
}
