"""What code decides by a single random number, such as whether a layer is dropped in training, decided from outside."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch.overrides import TorchFunctionMode

# A draw that is above every share at which something is dropped, and one that is below.
_KEEPS, _DROPS = 0.999, 0.0
# Nothing is dropped; or every other thing that a draw decides about is, so that each is in one of two runs.
Dropped: TypeAlias = Literal["none", "even", "odd"]


class ScalarDraws(TorchFunctionMode):
    """Gives a known number wherever torch or Python draw a single uniform one: tensors without data decide nothing.

    Attributes:
        count: How many were drawn.
    """

    def __init__(self, dropped: Dropped) -> None:
        super().__init__()
        self.dropped, self.count = dropped, 0

    def __enter__(self) -> ScalarDraws:
        self._own = {name: getattr(random, name) for name in ("random", "uniform")}
        random.random = self._draw
        random.uniform = lambda a, b: a + (b - a) * self._draw()
        return super().__enter__()  # type: ignore[no-any-return, no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        for name, function in self._own.items():
            setattr(random, name, function)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _draw(self) -> float:
        drops = self.dropped == ("odd" if self.count % 2 else "even")
        self.count += 1
        return _DROPS if drops else _KEEPS

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.rand and _is_single(args or (kwargs.get("size"),)):
            sizes = args[0] if args and isinstance(args[0], (list, tuple)) else args or kwargs["size"]
            return torch.full(tuple(sizes), self._draw(), dtype=kwargs.get("dtype"))
        return func(*args, **kwargs)


def _is_single(sizes: Any) -> bool:
    given = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (list, tuple)) else sizes
    return all(size == 1 for size in given)
