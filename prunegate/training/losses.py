"""The losses of a stage: summed on the device, and checked without stalling it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from prunegate.errors import DivergedError
from prunegate.training.plans import TrainingPlan
from prunegate.training.processes import Processes

logger = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where in a stage a loss was found, for messages.

    Attributes:
        epoch: From 0.
        step: Of the stage, from 0.
        rate: The weights' learning rate at this step.
        samples: Indices of this process's training samples, or None.
    """

    epoch: int
    step: int
    rate: float
    samples: torch.Tensor | None


class Losses:
    """Sums the losses of an epoch, and stops training if one is not finite.

    On the CPU a loss is checked before its gradients are computed. On other devices it is checked after the next step
    has been queued, as reading it at once would leave the device idle. If batches may be skipped, their losses are read
    at once on every device.

    Args:
        at_once: If given, overrides when losses are checked.

    Attributes:
        samples: The number of samples in the sum.
        passed_over: Batches skipped in this stage.
        newest: The last loss that was read; None at first.
    """

    def __init__(self, plan: TrainingPlan, processes: Processes, at_once: bool | None = None) -> None:
        self._plan, self._processes = plan, processes
        self._at_once = bool(plan.nonfinite_batches) or processes.device.type == "cpu" if at_once is None else at_once
        # float64 like Python's numbers, except on Apple's devices, which lack it.
        dtype = torch.float32 if processes.device.type == "mps" else torch.float64
        self._sum = torch.zeros((), dtype=dtype, device=processes.device)
        self._pending: tuple[Callable[[], float], torch.Tensor, Place] | None = None
        self.samples = self.passed_over = 0
        self.newest: float | None = None

    def of(self, loss: torch.Tensor, place: Place) -> float | torch.Tensor | None:
        """The loss of a batch or of a part of it, without its graph; None if the batch is to be skipped.

        Raises:
            DivergedError: The loss is checked at once, and is not finite.
        """
        if not self._at_once:
            return loss.detach().to(self._sum.dtype)
        (values,) = self._processes.gathered(float(loss.detach()))
        if not all(map(math.isfinite, values)):
            self._not_finite(values, place)
            return None
        self.newest = sum(values) / len(values)
        return self.newest

    def add(self, value: float | torch.Tensor, count: int, place: Place) -> None:
        """Add a step's loss, the mean over ``count`` samples.

        Raises:
            DivergedError: The loss of the previous step was not finite.
        """
        self.samples += count
        if not isinstance(value, torch.Tensor):
            self._sum += value * count
            return
        # All processes get the same mean, so they blame the same step, and a saved sum is valid for all.
        mean = self._processes.mean(value)
        self._sum.add_(mean, alpha=count)
        before, self._pending = self._pending, (_copied(mean), value, place)
        self._look(before)

    def settle(self) -> None:
        """Check the last loss too.

        Raises:
            DivergedError: It is not finite.
        """
        before, self._pending = self._pending, None
        self._look(before)

    def mean(self) -> float:
        """The mean over all samples; resets the sum."""
        mean = float(self._sum) / max(self.samples, 1)
        self._sum.zero_()
        self.samples = 0
        return mean

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers.

        Raises:
            DivergedError: The last loss is not finite.
        """
        self.settle()
        return {"loss_sum": float(self._sum), "samples": self.samples, "passed_over": self.passed_over}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sum.fill_(state["loss_sum"])
        self.samples, self.passed_over = state["samples"], state["passed_over"]

    # ---------------------------------------------------------------------------------------------

    def _look(self, pending: tuple[Callable[[], float], torch.Tensor, Place] | None) -> None:
        if pending is not None:
            read, own, place = pending
            self.newest = read()
            if not math.isfinite(self.newest):
                self._not_finite(self._processes.gathered(float(own))[0], place)

    def _not_finite(self, values: list[float], place: Place) -> None:
        """Skip the batch if the limit allows, otherwise stop."""
        known = self._processes.gathered_objects([] if place.samples is None else place.samples.tolist())
        bad = [index for value, some in zip(values, known, strict=True) if not math.isfinite(value) for index in some]
        shown = ", ".join(map(str, bad[:16])) + (", ..." if len(bad) > 16 else "")
        result = next(value for value in values if not math.isfinite(value))
        stage = self._plan.stage
        where = f"{stage}, epoch {place.epoch + 1}, step {place.step}: the loss is {result}, expected a finite number"
        samples = f" The batch holds the training samples {shown}." if bad else ""
        if self.passed_over >= self._plan.nonfinite_batches:
            raise DivergedError(
                f"{where}.{samples} The learning rate, {place.rate:.3g}, may be too high. Lower "
                f"stages.{stage}.learning_rate, or look at these samples, or skip some batches with "
                "guards.nonfinite_batches."
            )
        self.passed_over += 1
        if self._processes.is_first:
            logger.warning(
                "%s.%s Skipped: %d of at most %d.", where, samples, self.passed_over, self._plan.nonfinite_batches
            )


def _copied(value: torch.Tensor) -> Callable[[], float]:
    """Start copying a number to the CPU; the returned function waits for this copy only, and returns the number."""
    if value.device.type != "cuda":
        return lambda: float(value)
    here = torch.empty((), dtype=value.dtype, pin_memory=True)
    here.copy_(value, non_blocking=True)
    done = torch.cuda.current_stream(value.device).record_event()

    def read() -> float:
        done.synchronize()
        return float(here)

    return read
