"""The processes that train one model together, and their devices: on Accelerate."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, broadcast, broadcast_object_list, gather_object
from torch import nn

from prunegate.errors import RecipeError

Value = TypeVar("Value")


class Processes:
    """One process, or several that ``torchrun`` or ``accelerate launch`` has started.

    All of them call every method, in the same order; each sees what the others contribute.

    Args:
        precision: ``"no"`` (float32), ``"bf16"`` or ``"fp16"``: what forward passes are computed in; weights stay
            float32. fp16 scales the loss, so that small gradients are not lost.

    Raises:
        RecipeError: There is no such precision on this machine.
    """

    def __init__(self, precision: str = "no") -> None:
        check_precision(precision)
        # Accelerate holds the precision once for the whole process, and refuses another one later on.
        AcceleratorState._reset_state()
        self._averaging = DistributedDataParallelKwargs()
        # Without a device of another kind it has to be told that several processes are meant for the CPU.
        alone = not torch.accelerator.is_available()
        self._accelerator = Accelerator(mixed_precision=precision, cpu=alone, kwargs_handlers=[self._averaging])
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.count: int = self._accelerator.num_processes

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    def place(self, model: nn.Module) -> None:
        """Move a model to the device."""
        model.to(self.device)

    def prepare(
        self, model: nn.Module, optimizers: list[torch.optim.Optimizer], uses_all: Callable[[], bool]
    ) -> tuple[nn.Module, list[Any]]:
        """The model and its optimisers as they are trained: on the device, in the precision, gradients averaged.

        Args:
            uses_all: Whether every forward uses every parameter; if not, those that wait for each other's gradients
                have to look for the ones without, at each step. Asked if there are several processes.
        """
        self.place(model)
        self._averaging.find_unused_parameters = self.count > 1 and not self.from_first(uses_all())
        prepared, *others = self._accelerator.prepare(model, *optimizers)
        return prepared, list(others)

    def release(self, model: nn.Module) -> None:
        """Take from ``model`` what `prepare` put on it."""
        self._accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        self._accelerator.free_memory()

    def backward(self, loss: torch.Tensor) -> None:
        self._accelerator.backward(loss)

    def without_averaging(self, prepared: nn.Module) -> AbstractContextManager[Any]:
        """Gradients of this backward pass are only added up; the next one averages them over the processes."""
        context: AbstractContextManager[Any] = self._accelerator.no_sync(prepared)
        return context

    def clip(self, parameters: list[nn.Parameter], norm: float) -> None:
        self._accelerator.clip_grad_norm_(parameters, norm)

    def step(self, optimizers: list[Any]) -> None:
        """Let prepared optimisers step; where the loss is scaled, one whose gradients are not finite leaves it out."""
        scaler = self._accelerator.scaler
        if scaler is None:
            for optimizer in optimizers:
                optimizer.step()
            return
        # Not by Accelerate, which adapts the scale after each optimiser: the second would then unscale its gradients
        # by another scale than theirs, and, where they have been unscaled for clipping, once more.
        for optimizer in optimizers:
            scaler.step(optimizer.optimizer)
        scaler.update()

    def loss_scale_state(self) -> dict[str, Any] | None:
        """What the loss is scaled by, and for how long; None where it is not scaled."""
        scaler = self._accelerator.scaler
        return None if scaler is None else scaler.state_dict()

    def load_loss_scale_state(self, state: dict[str, Any] | None) -> None:
        """Go back to what `loss_scale_state` gave."""
        if self._accelerator.scaler is not None and state is not None:
            self._accelerator.scaler.load_state_dict(state)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of what all processes have, on the device; nothing waits for it."""
        if self.count == 1:
            return value
        mean: torch.Tensor = self._accelerator.reduce(value, "mean")
        return mean

    def gathered(self, *values: float) -> list[list[float]]:
        """For each value, what all processes have."""
        if self.count == 1:
            return [[value] for value in values]
        own = torch.tensor([values], dtype=torch.float64, device=self.device)
        results: list[list[float]] = self._accelerator.gather(own).T.tolist()
        return results

    def gathered_objects(self, value: Value) -> list[Value]:
        """What all processes have, by rank."""
        return list(gather_object([value])) if self.count > 1 else [value]

    def from_first(self, value: Value) -> Value:
        """What the first process has."""
        return value if self.count == 1 else broadcast_object_list([value])[0]

    def agree_on_buffers(self, model: nn.Module) -> None:
        """Give every process the first one's buffers: each has averaged its BatchNorm statistics by itself."""
        if self.count > 1:
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    broadcast(buffer)

    def by_first(self, action: Callable[[], Value], failed: type[Exception]) -> Value | None:
        """Let the first process do something; where it fails, all end, and only the first one says why.

        Raises:
            SystemExit: In the others, if the first one fails by an error of the kind ``failed``.
        """
        error: Exception | None = None
        value: Value | None = None
        if self.is_first:
            try:
                value = action()
            except failed as raised:
                error = raised
        if self.from_first(error is not None):
            raise error or SystemExit(2)
        return value


def check_precision(precision: str) -> None:
    """Make sure that this machine can compute in a precision.

    Raises:
        RecipeError: It cannot.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise RecipeError(
            "training.precision: found fp16 on a machine without CUDA, expected no or bf16. Training in fp16 needs a "
            "scaled loss, which CUDA alone has here. Set training.precision=bf16."
        )


def random_states() -> dict[str, Any]:
    """States of the process-wide sources of randomness, of plain values and tensors."""
    kind, keys, place, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        # Of this process's own device: asking for those of the others would take memory there.
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), place, has_gauss, gauss),
        "python": random.getstate(),
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Go back to what `random_states` gave."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    kind, keys, place, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), place, has_gauss, gauss))
    random.setstate(states["python"])
