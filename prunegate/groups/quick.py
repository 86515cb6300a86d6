"""The form of frequent operations' results, without the code in Python that torch keeps for the meta device.

Some of torch's kernels for the meta device take milliseconds where the answer is one tensor like another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

_aten = torch.ops.aten
_META = torch.device("meta")

# Gives the result, or NotImplemented where the arguments are not of the plain kind.
Form: TypeAlias = Callable[[Sequence[Any]], Any]


def run(func: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What ``func(*args, **kwargs)`` returns; for frequent operations on meta tensors by a short cut."""
    if func is _aten.empty.memory_format and 0 in args[0] and kwargs.get("device") == _META:  # batch norm asks for them
        return torch.empty(args[0], dtype=kwargs.get("dtype"), device=_META)
    form = None if kwargs else _FORMS.get(func)
    if form is not None and (form is _join or _is_plain(args[0])):
        result = form(args)
        if result is not NotImplemented:
            return result
    return func(*args, **kwargs)


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.is_meta and type(tensor) in (torch.Tensor, nn.Parameter) and tensor.is_contiguous()


def _empty(like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return torch.empty(shape, dtype=like.dtype, device=_META)


def _itself(args: Sequence[Any]) -> Any:
    return args[0]


def _alike(args: Sequence[Any]) -> Any:
    """Detaching is the quickest way to another tensor of the same form."""
    return args[0].detach()


def _broadcast(args: Sequence[Any]) -> Any:
    left, right = args[:2]
    if not isinstance(right, torch.Tensor) or left.dtype != right.dtype or not _is_plain(right) or len(args) > 2:
        return NotImplemented
    if left.shape == right.shape:
        return left.detach()
    if left.dim() != right.dim():
        return NotImplemented
    sizes = list(zip(left.shape, right.shape, strict=True))
    if any(a != b and 1 not in (a, b) for a, b in sizes):
        return NotImplemented
    return _empty(left, [b if a == 1 else a for a, b in sizes])


def _mean(args: Sequence[Any]) -> Any:
    x, dims, keep = (*args, False)[:3]
    if not dims or len(args) > 3:
        return NotImplemented
    gone = {dim % x.dim() for dim in dims}
    return _empty(x, [1 if d in gone else n for d, n in enumerate(x.shape) if keep or d not in gone])


def _join(args: Sequence[Any]) -> Any:
    tensors, dim = (*args, 0)[:2]
    first = tensors[0]
    if any(t.dtype != first.dtype or t.dim() != first.dim() or not _is_plain(t) for t in tensors):
        return NotImplemented
    shape = list(first.shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    return _empty(first, shape)


def _convolution(args: Sequence[Any]) -> Any:
    x, weight, _, stride, padding, dilation, transposed, *_ = args
    kernel = weight.shape[2:]
    over = len(kernel)
    if transposed or x.dim() != over + 2 or not len(stride) == len(padding) == len(dilation) == over:
        return NotImplemented
    spans = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    sizes = [(size + 2 * pad - dilate * (width - 1) - 1) // step + 1 for size, width, step, pad, dilate in spans]
    if x.shape[1] != weight.shape[1] * args[8] or min(sizes) < 1 or not weight.is_contiguous():
        return NotImplemented  # torch says what is wrong
    return _empty(x, [x.shape[0], weight.shape[0], *sizes])


def _affine(args: Sequence[Any]) -> Any:
    _, left, right, *_ = args
    return _empty(left, [left.shape[0], right.shape[1]])


def _batch_norm(args: Sequence[Any]) -> tuple[torch.Tensor, ...]:
    """The normalised input, and the statistics of the batch where it is in training."""
    x, size = args[0], args[0].shape[1] if args[5] else 0
    return x.detach(), _empty(x, [size]), _empty(x, [size])


def _layer_norm(args: Sequence[Any]) -> tuple[torch.Tensor, ...]:
    x, over = args[0], len(args[1])
    statistics = [_empty(x, [*x.shape[: x.dim() - over], *[1] * over]) for _ in range(2)]
    return x.detach(), *statistics


_FORMS: Mapping[Any, Form] = {
    _aten.convolution.default: _convolution,
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
