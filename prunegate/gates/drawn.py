"""A drawn mask in autograd: its gradient, and a record of the units that have one."""

from __future__ import annotations

from typing import Any

import torch


class Reached:
    """Which units have had a gradient from the loss: the sum over all passes, on the device.

    Attributes:
        passes: Backward passes that have reached the mask.
    """

    def __init__(self, units: int) -> None:
        self.passes = 0
        self.units = torch.zeros(units)

    def add(self, gradient: torch.Tensor) -> None:
        self.passes += 1
        # A plain sum takes one operation; over many steps it does not cancel to zero in all units of a group.
        self.units = self.units.to(gradient.device).add_(gradient)


class Drawn(torch.autograd.Function):
    """A draw whose backward pass can run several times.

    Checkpointing with recomputation in the backward pass (``use_reentrant=True``) reaches the logits once for each part
    of the model, and autograd frees the saved tensors of ordinary operations after the first time.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, mask: torch.Tensor, slope: torch.Tensor, reached: Reached | None
    ) -> torch.Tensor:
        ctx.slope, ctx.dtype, ctx.reached = slope, logits.dtype, reached
        return mask.view_as(mask)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        if ctx.reached is not None:
            ctx.reached.add(gradient)
        return (gradient * ctx.slope).to(ctx.dtype), None, None, None
