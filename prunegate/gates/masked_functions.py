"""Torch functions with some positions of an argument masked, as if these had been cut away.

For products, sums and norms it is enough to zero the argument. Functions that divide by a count, or look for a largest
entry, have their own masked form. Masked positions of the result have finite values that nothing reads.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils._pytree import tree_map

from prunegate.gates.masked_extremes import MASKED_EXTREMES
from prunegate.gates.masked_norm import by_operations, masked_layer_norm
from prunegate.gates.masked_query import masked_query
from prunegate.gates.operations import are_followed
from prunegate.gates.running import drops_nothing

Masked: TypeAlias = Callable[..., Any]


def call_masked(
    name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], masks: Mapping[int, Any]
) -> Any:
    """``func(*args, **kwargs)`` without the positions where a mask is zero.

    Args:
        name: The function's name, as `prunegate.groups.following.watch.function_name` gives it.
        masks: By index of the positional argument, a mask that broadcasts over it.
    """
    masked = MASKED_FUNCTIONS.get(name)
    if masked is None:
        changed = list(args)
        for place, mask in masks.items():
            changed[place] = args[place] * mask.to(args[place].dtype)
        return func(*changed, **kwargs)
    x, mask = args[0], masks[0]
    arguments = dict(zip(_NAMES[name], args[1:], strict=False))
    arguments |= {key: value for key, value in kwargs.items() if key in _NAMES[name]}
    half = x.dtype in (torch.float16, torch.bfloat16)
    dtype = torch.float32 if half and _widens(name, x.device.type) else x.dtype
    if name == "layer_norm" and len(arguments["normalized_shape"]) == 1 and mask.numel() == x.shape[-1]:
        return _last_layer_norm(x, mask.reshape(-1), dtype, **arguments)
    if name == "scaled_dot_product_attention":
        if drops_nothing():
            arguments["dropout_p"] = 0.0
        return masked(x, mask.to(torch.promote_types(x.dtype, torch.float32)), **arguments)
    if half:  # counts are not exact in half precision
        return tree_map(lambda t: t.to(dtype), masked(x.float(), mask.float(), **arguments))
    return masked(x, mask.to(x.dtype), **arguments)


def _widens(name: str, device: str) -> bool:
    """Whether autocast, if enabled, computes this function in float32 and returns float32."""
    return (name, device) in _WIDENED and torch.is_autocast_enabled(device)


# The functions with masked forms that autocast casts to float32; attention is the only one that it narrows.
_WIDENED = frozenset(
    (name, device)
    for device in ("cuda", "cpu", "mps", "xpu")
    for name, operation in (
        ("layer_norm", "layer_norm"), ("rms_norm", "rms_norm"), ("group_norm", "group_norm"), ("softmax", "softmax.int")
    )
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{operation}", f"Autocast{device.upper()}")
)  # fmt: skip


def _last_layer_norm(
    x: torch.Tensor,
    mask: torch.Tensor,
    dtype: torch.dtype,
    normalized_shape: Any,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    if are_followed():
        wide = torch.promote_types(x.dtype, torch.float32)
        return by_operations(x.to(wide), mask.to(wide), weight, bias, eps).to(dtype)
    return masked_layer_norm(x, mask, weight, bias, eps, dtype)


def _count(x: torch.Tensor, mask: torch.Tensor, dims: list[int], keepdim: bool = True) -> torch.Tensor:
    mask = mask.reshape(*[1] * (x.dim() - mask.dim()), *mask.shape)
    positions = math.prod(x.shape[dim] for dim in {dim % x.dim() for dim in dims} if mask.shape[dim] == 1)
    return (mask.sum(dims, keepdim=keepdim) * positions).clamp_min(1)


def _moments(x: torch.Tensor, mask: torch.Tensor, dims: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and (biased) variance over the kept positions of ``dims``, dimensions kept."""
    count = _count(x, mask, dims)
    mean = (x * mask).sum(dims, keepdim=True) / count
    variance = ((x - mean).square() * mask).sum(dims, keepdim=True) / count
    return mean, variance


def _layer_norm(
    x: torch.Tensor,
    mask: torch.Tensor,
    normalized_shape: Any,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    mean, variance = _moments(x, mask, list(range(-len(normalized_shape), 0)))
    return _affine((x - mean) * torch.rsqrt(variance + eps), weight, bias)


def _rms_norm(
    x: torch.Tensor,
    mask: torch.Tensor,
    normalized_shape: Any,
    weight: torch.Tensor | None = None,
    eps: float | None = None,
) -> torch.Tensor:
    dims = list(range(-len(normalized_shape), 0))
    square = (x.square() * mask).sum(dims, keepdim=True) / _count(x, mask, dims)
    return _affine(x * torch.rsqrt(square + (torch.finfo(x.dtype).eps if eps is None else eps)), weight, None)


def _group_norm(
    x: torch.Tensor,
    mask: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    grouped = x.reshape(x.shape[0], num_groups, -1)
    kept = mask.expand(1, x.shape[1], *[1] * (x.dim() - 2)).expand(1, *x.shape[1:]).reshape(1, num_groups, -1)
    mean, variance = _moments(grouped, kept, [2])
    normalised = ((grouped - mean) * torch.rsqrt(variance + eps)).reshape(x.shape)
    shape = (1, -1, *[1] * (x.dim() - 2))
    weight = None if weight is None else weight.reshape(shape)
    return _affine(normalised, weight, None if bias is None else bias.reshape(shape))


def _batch_norm(
    x: torch.Tensor,
    mask: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Batch norm with batch statistics, over all dimensions except 1 (as standardised weights use it)."""
    mean, variance = _moments(x, mask, [d for d in range(x.dim()) if d != 1])
    shape = (1, -1, *[1] * (x.dim() - 2))
    weight = None if weight is None else weight.reshape(shape)
    bias = None if bias is None else bias.reshape(shape)
    return _affine((x - mean) * torch.rsqrt(variance + eps), weight, bias)


def _affine(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    if weight is not None:
        x = x * weight
    return x if bias is None else x + bias


def _dims(dim: Any, x: torch.Tensor) -> list[int]:
    if dim is None:
        return list(range(x.dim()))
    return [dim] if isinstance(dim, int) else list(dim)


def _mean(x: torch.Tensor, mask: torch.Tensor, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    dims = _dims(dim, x)
    return (x * mask).sum(dims, keepdim=keepdim, dtype=dtype) / _count(x, mask, dims, keepdim)


def _var_mean(
    x: torch.Tensor,
    mask: torch.Tensor,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    correction: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(dim, bool):  # x.var(unbiased)
        dim, unbiased = None, dim
    dims = _dims(dim, x)
    less = int(unbiased) if correction is None else correction
    mean, variance = _moments(x, mask, dims)
    count = _count(x, mask, dims)
    variance = variance * count / (count - less)
    return (variance, mean) if keepdim else (_squeezed(variance, dims), _squeezed(mean, dims))


def _root(variance: torch.Tensor) -> torch.Tensor:
    """The square root; where it is zero the gradient is zero, as torch's own deviations have it."""
    positive = variance > 0
    return torch.where(positive, torch.where(positive, variance, 1).sqrt(), 0)


def _squeezed(x: torch.Tensor, dims: list[int]) -> torch.Tensor:
    gone = {d % x.dim() for d in dims}
    return x.reshape([size for d, size in enumerate(x.shape) if d not in gone])


def _first(name: str, root: bool) -> Masked:
    """``var`` and ``std`` from `_var_mean`, whose signature they share."""

    def masked(
        x: torch.Tensor,
        mask: torch.Tensor,
        dim: Any = None,
        unbiased: bool = True,
        keepdim: bool = False,
        correction: int | None = None,
    ) -> torch.Tensor:
        variance, _ = _var_mean(x, mask, dim, unbiased, keepdim, correction)
        return _root(variance) if root else variance

    masked.__name__ = name
    return masked


def _std_mean(
    x: torch.Tensor,
    mask: torch.Tensor,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    correction: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    variance, mean = _var_mean(x, mask, dim, unbiased, keepdim, correction)
    return _root(variance), mean


def _pairwise_distance(
    x: torch.Tensor,
    mask: torch.Tensor,
    x2: torch.Tensor,
    p: float = 2.0,
    eps: float = 1e-6,
    keepdim: bool = False,
) -> torch.Tensor:
    distance: torch.Tensor = torch.linalg.vector_norm((x - x2 + eps) * mask, p, -1, keepdim)
    return distance


def _scaled_dot_product_attention(
    query: torch.Tensor,
    mask: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Attention with some head dimensions of the queries masked; the default scale counts only the kept ones."""
    query = masked_query(query, mask, key.dtype, scale is None)
    return nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


MASKED_FUNCTIONS: Mapping[str, Masked] = {
    **MASKED_EXTREMES,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "batch_norm": _batch_norm,
    "mean": _mean,
    "var": _first("var", root=False),
    "std": _first("std", root=True),
    "var_mean": _var_mean,
    "std_mean": _std_mean,
    "pairwise_distance": _pairwise_distance,
    "scaled_dot_product_attention": _scaled_dot_product_attention,
}
# Their parameters after the tensor and its mask.
_NAMES = {name: tuple(inspect.signature(masked).parameters)[2:] for name, masked in MASKED_FUNCTIONS.items()}
