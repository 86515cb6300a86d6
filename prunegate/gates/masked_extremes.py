"""Masked forms of functions that look for an extreme entry, or take exponentials, in which masked entries never win."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn


def _lowest(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask.bool(), x, torch.finfo(x.dtype).min)


def _highest(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask.bool(), x, torch.finfo(x.dtype).max)


def _amin(x: torch.Tensor, mask: torch.Tensor, dim: Any = (), keepdim: bool = False) -> torch.Tensor:
    return _highest(x, mask).amin(dim, keepdim=keepdim)


def _max(x: torch.Tensor, mask: torch.Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    left = _lowest(x, mask)
    return left.max() if dim is None else left.max(dim, keepdim)


def _min(x: torch.Tensor, mask: torch.Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    left = _highest(x, mask)
    return left.min() if dim is None else left.min(dim, keepdim)


def _aminmax(x: torch.Tensor, mask: torch.Tensor, *, dim: Any = None, keepdim: bool = False) -> Any:
    least = _highest(x, mask).aminmax(dim=dim, keepdim=keepdim)
    return type(least)((least.min, _lowest(x, mask).aminmax(dim=dim, keepdim=keepdim).max))


def _logsumexp(x: torch.Tensor, mask: torch.Tensor, dim: Any, keepdim: bool = False) -> torch.Tensor:
    return _lowest(x, mask).logsumexp(dim, keepdim=keepdim)


def _logcumsumexp(x: torch.Tensor, mask: torch.Tensor, dim: int) -> torch.Tensor:
    return _lowest(x, mask).logcumsumexp(dim)


def _prod(x: torch.Tensor, mask: torch.Tensor, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    left = torch.where(mask.bool(), x, 1)
    return left.prod(dtype=dtype) if dim is None else left.prod(dim, keepdim=keepdim, dtype=dtype)


def _amax(x: torch.Tensor, mask: torch.Tensor, dim: Any = (), keepdim: bool = False) -> torch.Tensor:
    return _lowest(x, mask).amax(dim, keepdim=keepdim)


def _softmax(x: torch.Tensor, mask: torch.Tensor, dim: int, _stacklevel: int = 3, dtype: Any = None) -> torch.Tensor:
    # Masked positions would be zero, where logarithm, root and inverse have no finite gradient. Sums over these
    # positions leave them out again.
    return torch.where(mask.bool(), nn.functional.softmax(_lowest(x, mask), dim, dtype=dtype), 1)


def _softmin(x: torch.Tensor, mask: torch.Tensor, dim: int, _stacklevel: int = 3, dtype: Any = None) -> torch.Tensor:
    return torch.where(mask.bool(), nn.functional.softmin(_highest(x, mask), dim, dtype=dtype), 1)


def _log_softmax(
    x: torch.Tensor, mask: torch.Tensor, dim: int, _stacklevel: int = 3, dtype: Any = None
) -> torch.Tensor:
    left = nn.functional.log_softmax(_lowest(x, mask), dim, dtype=dtype)
    return torch.where(mask.bool(), left, 0)  # masked positions would be practically minus infinity


MASKED_EXTREMES: Mapping[str, Callable[..., Any]] = {
    "amax": _amax,
    "amin": _amin,
    "max": _max,
    "min": _min,
    "aminmax": _aminmax,
    "logsumexp": _logsumexp,
    "logcumsumexp": _logcumsumexp,
    "prod": _prod,
    "softmax": _softmax,
    "softmin": _softmin,
    "log_softmax": _log_softmax,
}
