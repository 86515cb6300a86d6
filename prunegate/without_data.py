"""Running constructors without initialising tensors that have no data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

# Functions that only write into their first argument.
_WRITERS = frozenset(
    """normal_ uniform_ fill_ zero_ bernoulli_ exponential_ trunc_normal_ copy_ mul_ add_ sub_ div_ clamp_ erfinv_
    kaiming_normal_ kaiming_uniform_ xavier_normal_ xavier_uniform_ orthogonal_ constant_ ones_ zeros_ dirac_ eye_
    _no_grad_normal_ _no_grad_uniform_ _no_grad_fill_ _no_grad_zero_ _no_grad_trunc_normal_""".split()
)


class _WithoutValues(TorchFunctionMode):
    """Skips writing into meta tensors, such as initialisation, which has no effect but takes most of the time."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _WRITERS:
            target = args[0] if args else kwargs.get("tensor")
            if isinstance(target, torch.Tensor) and target.is_meta:
                return target
        return func(*args, **kwargs)


class _SmallReal(TorchFunctionMode):
    """Creates tensors with more than a few numbers on the meta device, whatever function creates them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        # Broadcasting, joining or multiplying them gives at most this size.
        if math.prod({tuple(t.shape): t.numel() for t in given}.values()) > _FEW or len(given) > _FEW:
            args, kwargs = tree_map(_on_meta, (args, kwargs))
        elif not given and getattr(func, "__name__", "") in _MAKERS and _numbers_asked(args, kwargs or {}) > _FEW:
            kwargs = {**(kwargs or {}), "device": "meta"}
        return func(*args, **(kwargs or {}))


# Largest tensors whose values a constructor may read, such as widths and depths of its blocks.
_FEW = 1 << 14
_MAKERS = frozenset("empty zeros ones full rand randn randint arange linspace logspace eye".split())


def _on_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def _numbers_asked(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """An upper bound on the numbers that a tensor-creating function is asked for."""
    whole = [n for n in tree_leaves((args, kwargs)) if isinstance(n, (int, float)) and not isinstance(n, bool)]
    return math.prod(max(int(abs(n)), 1) for n in whole if abs(n) < 1 << 62)


@contextmanager
def with_little_data() -> Iterator[None]:
    """In this context constructors make large tensors on the meta device, and small ones that they can read."""
    with _WithoutValues(), _SmallReal():
        yield


@contextmanager
def without_parameters() -> Iterator[None]:
    """In this context modules get their parameters on the meta device, and nothing is written into them."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False), _WithoutValues():
        yield


@contextmanager
def without_data() -> Iterator[None]:
    """In this context constructors make tensors on the meta device, which takes no memory and little time."""
    with torch.device("meta"), _WithoutValues():
        yield


def drop_data(model: nn.Module) -> None:
    """Put a model's parameters and buffers on the meta device, in place; shared ones stay shared."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                data = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
                module._parameters[name] = made.setdefault(id(parameter), data)  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                module._buffers[name] = made.setdefault(id(buffer), buffer.to("meta"))
