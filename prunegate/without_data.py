"""Running constructors without giving values to tensors that hold none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# Functions that do nothing but write into their first argument.
_WRITERS = frozenset(
    """normal_ uniform_ fill_ zero_ bernoulli_ exponential_ trunc_normal_ copy_ mul_ add_ sub_ div_ clamp_ erfinv_
    kaiming_normal_ kaiming_uniform_ xavier_normal_ xavier_uniform_ orthogonal_ constant_ ones_ zeros_ dirac_ eye_
    _no_grad_normal_ _no_grad_uniform_ _no_grad_fill_ _no_grad_zero_ _no_grad_trunc_normal_""".split()
)


class _WithoutValues(TorchFunctionMode):
    """Writing into tensors on the meta device, as all initialising is, does nothing; it takes most of the time."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _WRITERS:
            target = args[0] if args else kwargs.get("tensor")
            if isinstance(target, torch.Tensor) and target.is_meta:
                return target
        return func(*args, **kwargs)


@contextmanager
def without_data() -> Iterator[None]:
    """In this context constructors make tensors on the meta device, which takes no memory and little time."""
    with torch.device("meta"), _WithoutValues():
        yield
