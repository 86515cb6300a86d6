"""The processes that train one model together, and their devices, on top of Accelerate."""

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
    """One process, or several started by ``torchrun`` or ``accelerate launch``.

    All of them have to call every method, in the same order.

    Args:
        precision: ``"no"`` (float32), ``"bf16"`` or ``"fp16"``: the precision of forward passes; weights are kept in
            float32. With fp16 the loss is scaled, so that small gradients do not underflow.

    Raises:
        RecipeError: This machine does not support the precision.
    """

    def __init__(self, precision: str = "no") -> None:
        check_precision(precision)
        # Accelerate stores the precision once per process, and refuses another one later.
        AcceleratorState._reset_state()
        self._averaging = DistributedDataParallelKwargs()
        # Without an accelerator, Accelerate has to be told that several processes run on the CPU.
        alone = not torch.accelerator.is_available()
        self._accelerator = Accelerator(mixed_precision=precision, cpu=alone, kwargs_handlers=[self._averaging])
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.count: int = self._accelerator.num_processes

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and messages."""
        return self.rank == 0

    def place(self, model: nn.Module) -> None:
        """Move a model to the device."""
        model.to(self.device)

    def prepare(
        self, model: nn.Module, optimizers: list[torch.optim.Optimizer], uses_all: Callable[[], bool]
    ) -> tuple[nn.Module, list[Any]]:
        """The model and its optimisers prepared for training: device, precision and averaging of gradients.

        Args:
            uses_all: Whether every forward pass uses every parameter; if not, DDP has to search for unused parameters
                at each step. Called only if there are several processes.
        """
        self.place(model)
        self._averaging.find_unused_parameters = self.count > 1 and not self.from_first(uses_all())
        prepared, *others = self._accelerator.prepare(model, *optimizers)
        return prepared, list(others)

    def release(self, model: nn.Module) -> None:
        """Undo what `prepare` did to ``model``."""
        self._accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        self._accelerator.free_memory()

    def backward(self, loss: torch.Tensor) -> None:
        self._accelerator.backward(loss)

    def without_averaging(self, prepared: nn.Module) -> AbstractContextManager[Any]:
        """Only accumulate the gradients of this backward pass; the next one averages them over the processes."""
        context: AbstractContextManager[Any] = self._accelerator.no_sync(prepared)
        return context

    def clip(self, parameters: list[nn.Parameter], norm: float) -> None:
        self._accelerator.clip_grad_norm_(parameters, norm)

    def step(self, optimizers: list[Any]) -> None:
        """Step prepared optimisers; with a scaled loss, one whose gradients are not finite skips its step."""
        scaler = self._accelerator.scaler
        if scaler is None:
            for optimizer in optimizers:
                optimizer.step()
            return
        # Not through Accelerate, which updates the scale after each optimiser: the second one would then unscale its
        # gradients with the wrong scale, and a second time if they were already unscaled for clipping.
        for optimizer in optimizers:
            scaler.step(optimizer.optimizer)
        scaler.update()

    def loss_scale_state(self) -> dict[str, Any] | None:
        """The state of the loss scale; None if the loss is not scaled."""
        scaler = self._accelerator.scaler
        return None if scaler is None else scaler.state_dict()

    def load_loss_scale_state(self, state: dict[str, Any] | None) -> None:
        """Restore the state from `loss_scale_state`."""
        if self._accelerator.scaler is not None and state is not None:
            self._accelerator.scaler.load_state_dict(state)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean over all processes, on the device, without synchronisation."""
        if self.count == 1:
            return value
        mean: torch.Tensor = self._accelerator.reduce(value, "mean")
        return mean

    def gathered(self, *values: float) -> list[list[float]]:
        """For each argument, the values of all processes."""
        if self.count == 1:
            return [[value] for value in values]
        own = torch.tensor([values], dtype=torch.float64, device=self.device)
        results: list[list[float]] = self._accelerator.gather(own).T.tolist()
        return results

    def gathered_objects(self, value: Value) -> list[Value]:
        """The values of all processes, by rank."""
        return list(gather_object([value])) if self.count > 1 else [value]

    def from_first(self, value: Value) -> Value:
        """The value of the first process."""
        return value if self.count == 1 else broadcast_object_list([value])[0]

    def agree_on_buffers(self, model: nn.Module) -> None:
        """Copy the first process's buffers to all, as each averages BatchNorm statistics separately."""
        if self.count > 1:
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    broadcast(buffer)

    def by_first(self, action: Callable[[], Value], failed: type[Exception]) -> Value | None:
        """Run an action in the first process only; if it fails, all processes exit, and only the first raises the
        error.

        Raises:
            SystemExit: In the other processes, if the first one fails with an error of type ``failed``.
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
    """Check that this machine supports a precision.

    Raises:
        RecipeError: It does not.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise RecipeError(
            "training.precision: found fp16 on a machine without CUDA, expected no or bf16. Training in fp16 needs a "
            "scaled loss, which is supported on CUDA only. Set training.precision=bf16."
        )


def random_states() -> dict[str, Any]:
    """States of the process-wide random generators, as plain values and tensors."""
    kind, keys, place, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        # This process's own device only: reading the state of other devices would allocate memory there.
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), place, has_gauss, gauss),
        "python": random.getstate(),
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Restore the states from `random_states`."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    kind, keys, place, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), place, has_gauss, gauss))
    random.setstate(states["python"])
