"""The modes under which a model is traced, and its tensors."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from prunegate.groups.following.maskable import function_name
from prunegate.groups.following.watch import Watch
from prunegate.groups.torch_workarounds.copies import modules_by_path
from prunegate.groups.torch_workarounds.draws import Dropped, ScalarDraws
from prunegate.groups.torch_workarounds.fake_tensors import FakeTensors
from prunegate.groups.torch_workarounds.kernels import decomposed_attention
from prunegate.seeding import seed_torch


@contextlib.contextmanager
def no_collection(unless: bool = False) -> Iterator[None]:
    """Turn off cyclic garbage collection, as the many small objects created here contain no cycles.

    It would take a tenth of the time. ``unless`` keeps it on if tensors hold data, as a model's own garbage may be
    large.
    """
    enabled = gc.isenabled() and not unless
    if enabled:
        gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def stored_tensors(model: nn.Module) -> list[tuple[Literal["parameter", "buffer"], str, torch.Tensor]]:
    """Parameters, then buffers, each once, under its first name, in torch's order."""
    parameters: dict[int, tuple[Literal["parameter", "buffer"], str, torch.Tensor]] = {}
    buffers = parameters.copy()
    for path, module in modules_by_path(model):
        prefix = f"{path}." if path else ""
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in parameters:
                parameters[id(parameter)] = ("parameter", prefix + name, parameter)
        for name, buffer in module._buffers.items():
            if buffer is not None and id(buffer) not in buffers:
                buffers[id(buffer)] = ("buffer", prefix + name, buffer)
    return [*parameters.values(), *buffers.values()]


@contextlib.contextmanager
def run_watched(
    model: nn.Module, watch: Watch, fake_tensors: FakeTensors, dropped: Dropped | None = None
) -> Iterator[None]:
    """The modes under which a model is followed, without the mode that follows its operations.

    Args:
        dropped: What is dropped where a single random number decides; None leaves it to chance.
    """
    with (
        watch.modules_of(model),
        decomposed_attention(),
        torch.no_grad(),
        fake_tensors.running(),
        same_draws() if fake_tensors.kind == "real" else contextlib.nullcontext(),
        single_draws(dropped),
        watch,
    ):
        yield


@contextlib.contextmanager
def running_unfollowed(fake_tensors: FakeTensors, dropped: Dropped | None = None) -> Iterator[None]:
    """The modes under which a model only runs, to see whether it does.

    The fused kernel of torch's encoder layers checks nothing on tensors without data, so it is taken apart here too.

    Args:
        dropped: See `run_watched`.
    """
    with decomposed_attention(), fake_tensors.running_unfollowed(), torch.no_grad(), single_draws(dropped):
        yield


def single_draws(dropped: Dropped | None) -> contextlib.AbstractContextManager[Any]:
    """Decides what code decides by a single random number; None leaves it to chance."""
    return contextlib.nullcontext() if dropped is None else ScalarDraws(dropped)


@contextlib.contextmanager
def same_draws() -> Iterator[None]:
    """Make every run draw the same numbers at the same calls, however many entries earlier calls drew.

    Otherwise a run of the cut model might skip other layers than the dense one (layer drop), or pick other tokens.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices), _Reseeded():
        yield


class _Reseeded(TorchFunctionMode):
    """Reseeds before every function that draws."""

    def __init__(self) -> None:
        super().__init__()
        self._drawn = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function_name(func) in _DRAWING:
            self._drawn += 1
            seed_torch(self._drawn)
        return func(*args, **(kwargs or {}))


_DRAWING = frozenset(
    """rand randn randint randperm normal bernoulli multinomial poisson rand_like randn_like randint_like dropout
    dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout dropout_ scaled_dot_product_attention bernoulli_
    normal_ uniform_ exponential_ log_normal_ cauchy_ geometric_ random_""".split()
)
