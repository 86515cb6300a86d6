"""The tensors that replace a model's own during tracing, so that nothing is computed."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from prunegate.groups.torch_workarounds.caches import caches_of
from prunegate.groups.torch_workarounds.copies import copy_with
from prunegate.groups.torch_workarounds.quick import Quickly

Kind: TypeAlias = Literal["meta", "fake", "real"]

# Kinds of tensors for tracing, fastest first. Meta tensors cannot be combined with tensors that the model's code
# creates on a device; fake ones can, and are several times slower; shapes that depend on values need real ones.
KINDS: tuple[Kind, ...] = ("meta", "fake", "real")


class FakeTensors:
    """Tensors without data that replace a model's own; for the kind ``"real"``, copies of its own.

    Attributes:
        kind: ``"meta"``, ``"fake"`` or ``"real"``.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._mode = FakeTensorMode(allow_non_fake_inputs=True) if kind == "fake" else None
        self._caches: list[Any] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return FakeTensors, (self.kind,)

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the same form. A fake tensor for the meta device is on the CPU, so that both can be combined."""
        if self.kind == "real":  # a copy, as the model's code may write into it
            return tensor.detach().clone()
        if self._mode is None:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        if not tensor.is_meta:
            return self._mode.from_tensor(tensor.detach())
        with self._mode:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")

    def of_model(self, model: nn.Module) -> nn.Module:
        """A frozen copy of a model with its parameters and buffers replaced; shared ones stay shared."""
        if self.kind == "real":
            return copy_with(model).requires_grad_(False)
        self._caches = caches_of(model)
        return copy_with(model, self.of)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The context for running such a copy. Failing operations only raise their errors, without torch's reports."""
        quiet = contextlib.nullcontext() if self._mode is None else _quiet()
        with quiet, self._with_empty_caches(), self._mode or contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def running_unfollowed(self) -> Iterator[None]:
        """The same for a faster run that only checks shapes."""
        quickly: Any = Quickly() if self.kind == "meta" else contextlib.nullcontext()  # type: ignore[no-untyped-call]
        with self.running(), quickly:
            yield

    @contextlib.contextmanager
    def _with_empty_caches(self) -> Iterator[None]:
        """Keep cached real tensors out of a run without data, and the reverse."""
        caches = self._caches
        for cache in caches:
            cache.cache_clear()
        try:
            yield
        finally:
            for cache in caches:
                cache.cache_clear()


def lacks_data(tensor: torch.Tensor) -> bool:
    """Whether a tensor has a form but no data."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch's reports of operations that fail on fake tensors, which is expected here."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
