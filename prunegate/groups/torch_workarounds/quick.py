"""Shortcuts for the results of frequent operations on the meta device, without torch's Python code.

Some of torch's meta kernels take milliseconds although the result is just a tensor like its input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_META = torch.device("meta")

# Returns the result, or NotImplemented if the arguments are not of the common form.
Form: TypeAlias = Callable[[Sequence[Any]], Any]


def run(func: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return ``func(*args, **kwargs)``, with a shortcut for frequent operations on meta tensors."""
    if func is _aten.empty.memory_format and 0 in args[0] and kwargs.get("device") == _META:  # used by batch norm
        return torch.empty(args[0], dtype=kwargs.get("dtype"), device=_META)
    if func is _aten.clone.default and kwargs == {"memory_format": torch.contiguous_format}:
        x = args[0]
        return _empty(x, x.shape) if x.is_meta and type(x) in _PLAIN else func(*args, **kwargs)
    form = None if kwargs else _FORMS.get(func)
    if form is not None and (form is _join or (_has_form(args[0], func) and args[0].is_floating_point())):
        result = form(args)
        if result is not NotImplemented:
            return result
    return func(*args, **kwargs)


class Quickly(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shortcuts for the operations of an untraced run that only checks shapes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


_PLAIN = (torch.Tensor, nn.Parameter)
# Their results are contiguous, whatever their arguments are.
_OF_ANY_LAYOUT = (_aten.native_layer_norm.default, _aten.roll.default)


def _has_form(tensor: torch.Tensor, func: torch._ops.OpOverload) -> bool:
    if func in _OF_ANY_LAYOUT:
        return tensor.is_meta and type(tensor) in _PLAIN
    return _is_plain(tensor)


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.is_meta and type(tensor) in _PLAIN and tensor.is_contiguous()


def _empty(like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return torch.empty(shape, dtype=like.dtype, device=_META)


def _itself(args: Sequence[Any]) -> Any:
    return args[0]


def _alike(args: Sequence[Any]) -> Any:
    """A tensor of the same form; detaching is the fastest way to create one."""
    return args[0].detach()


def _rolled(args: Sequence[Any]) -> Any:
    x, shifts, dims = (*args, ())[:3]
    if len(shifts) != len(dims) or not all(-x.dim() <= dim < x.dim() for dim in dims):
        return NotImplemented
    return _empty(x, x.shape)


def _compared(args: Sequence[Any]) -> Any:
    return torch.empty(args[0].shape, dtype=torch.bool, device=_META)


def _filled(args: Sequence[Any]) -> Any:
    x, mask, _ = args
    if mask.shape != x.shape or mask.dtype is not torch.bool or not _is_plain(mask):
        return NotImplemented
    return _empty(x, x.shape)


def _added_to(args: Sequence[Any]) -> Any:
    left, right = args[:2]
    same = isinstance(right, torch.Tensor) and right.is_meta and (right.shape, right.dtype) == (left.shape, left.dtype)
    return left if same and len(args) == 2 else NotImplemented


def _broadcast(args: Sequence[Any]) -> Any:
    left, right = args[:2]
    if type(right) in (int, float) and len(args) == 2:
        return left.detach()
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
    if not -len(shape) <= dim < len(shape):
        return NotImplemented
    shape[dim] = 1
    for tensor in tensors:
        if [*tensor.shape[:dim], 1, *tensor.shape[dim:][1:]] != shape:
            return NotImplemented
    shape[dim] = sum(t.shape[dim] for t in tensors)
    return _empty(first, shape)


def _convolution(args: Sequence[Any]) -> Any:
    x, weight, bias, stride, padding, dilation, transposed, _, groups = args
    kernel = weight.shape[2:]
    over = len(kernel)
    if transposed or x.dim() != over + 2 or not len(stride) == len(padding) == len(dilation) == over:
        return NotImplemented
    spans = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    sizes = [(size + 2 * pad - dilate * (width - 1) - 1) // step + 1 for size, width, step, pad, dilate in spans]
    if x.shape[1] != weight.shape[1] * groups or min(sizes) < 1 or not weight.is_contiguous():
        return NotImplemented  # torch raises the error
    if weight.shape[0] % groups or weight.dtype != x.dtype or not _fit([bias], x, weight.shape[:1]):
        return NotImplemented
    return _empty(x, [x.shape[0], weight.shape[0], *sizes])


def _fit(tensors: Sequence[torch.Tensor | None], x: torch.Tensor, shape: Sequence[int]) -> bool:
    """Whether the tensors that are not None have this shape, and can be combined with ``x``."""
    return all(t is None or (t.shape == shape and t.dtype == x.dtype and t.is_meta) for t in tensors)


def _affine(args: Sequence[Any]) -> Any:
    bias, left, right, *_ = args
    if len(args) > 3 or left.dim() != 2 or right.dim() != 2 or left.shape[1] != right.shape[0]:
        return NotImplemented
    if bias.shape != right.shape[1:] or not bias.dtype == left.dtype == right.dtype:
        return NotImplemented
    return _empty(left, [left.shape[0], right.shape[1]])


def _batch_norm(args: Sequence[Any]) -> Any:
    """The normalised input, and the batch statistics in training mode."""
    x, *own, training, _, _ = args
    if x.dim() < 2 or not _fit(own, x, x.shape[1:2]) or (not training and any(t is None for t in own[2:])):
        return NotImplemented
    size = x.shape[1] if training else 0
    return x.detach(), _empty(x, [size]), _empty(x, [size])


def _layer_norm(args: Sequence[Any]) -> Any:
    x, over = args[0], len(args[1])
    if not over or list(x.shape[-over:]) != list(args[1]) or not _fit(args[2:4], x, x.shape[-over:]):
        return NotImplemented
    statistics = [_empty(x, [*x.shape[: x.dim() - over], *[1] * over]) for _ in range(2)]
    return x.detach() if x.is_contiguous() else _empty(x, x.shape), *statistics


def _group_norm(args: Sequence[Any]) -> Any:
    x, weight, bias, samples, channels, _, groups, _ = args
    if (
        x.dim() < 2
        or x.shape[1] % groups
        or x.shape[:2] != (samples, channels)
        or not _fit([weight, bias], x, [channels])
    ):
        return NotImplemented
    return x.detach(), _empty(x, [samples, groups]), _empty(x, [samples, groups])


def _by_experts(args: Sequence[Any]) -> Any:
    """The kernel supports any floating-point tensors, while its meta kernel only accepts those of GPUs."""
    rows, weight, *_ = args
    if rows.dim() != 2 or weight.dim() != 3 or rows.shape[1] != weight.shape[1] or rows.dtype != weight.dtype:
        return NotImplemented
    return _empty(rows, [rows.shape[0], weight.shape[2]])


_FORMS: Mapping[Any, Form] = {
    _aten.convolution.default: _convolution,
    _aten.native_batch_norm.default: _batch_norm,
    _aten.native_layer_norm.default: _layer_norm,
    _aten.native_group_norm.default: _group_norm,
    _aten.addmm.default: _affine,
    **({_aten._grouped_mm.default: _by_experts} if hasattr(_aten, "_grouped_mm") else {}),  # torch 2.6 has none
    _aten.mean.dim: _mean,
    _aten.cat.default: _join,
    _aten.roll.default: _rolled,
    _aten.add_.Tensor: _added_to,
    _aten.masked_fill.Scalar: _filled,
    **dict.fromkeys((_aten.eq.Scalar, _aten.ne.Scalar), _compared),
    **dict.fromkeys((_aten.add.Tensor, _aten.mul.Tensor, _aten.sub.Tensor), _broadcast),
    **dict.fromkeys(
        (
            _aten.hardsigmoid_.default,
            _aten.hardswish_.default,
            _aten.hardtanh_.default,
            _aten.relu_.default,
            _aten.silu_.default,
        ),
        _itself,
    ),
    **dict.fromkeys(
        (
            _aten.gelu.default,
            _aten.hardsigmoid.default,
            _aten.hardswish.default,
            _aten.hardtanh.default,
            _aten.relu.default,
            _aten.sigmoid.default,
            _aten.silu.default,
        ),
        _alike,
    ),
}
