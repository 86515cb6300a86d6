"""Curves for the user's own training loop."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from prunegate.errors import LoopError
from prunegate.report.curves import KeptLayer, draw_report
from prunegate.wrapping import GatedModel, gated_model


class Recorder:
    """Records the epochs of a loop, and draws them like the runs of recipes::

        record = prunegate.report.Recorder(gated)
        for epoch in range(epochs):
            ...  # train, and measure
            record.epoch(loss=loss, accuracy=accuracy, target=budget.target(gated))
        record.draw("report.png")

    Attributes:
        records: One dict of plain numbers per epoch, as in a run's ``metrics.jsonl``.

    Args:
        gated: The gated model; its tau, costs and kept units are recorded.
        loss_name: Name of the loss for the curve's title, such as ``"cross entropy"``.

    Raises:
        NotGatedError: ``gated`` is not a gated model.
    """

    def __init__(self, gated: GatedModel, loss_name: str = "") -> None:
        self.gated = gated_model(gated, "Recorder")
        self.loss_name = loss_name
        self.records: list[dict[str, Any]] = []

    @torch.no_grad()
    def epoch(
        self,
        loss: float | torch.Tensor,
        accuracy: float | torch.Tensor | None = None,
        target: float | None = None,
        stage: str | None = None,
    ) -> dict[str, Any]:
        """Record one epoch.

        Args:
            loss: Mean training loss.
            accuracy: On held-out data, in [0, 1].
            target: Current target in MACs per sample, from `Budget.target`.
            stage: By default ``"gate"`` while masks are drawn and ``"finetune"`` once they are fixed.

        Returns:
            The record, which is also appended to `records`.
        """
        stage = stage or ("finetune" if self.gated.gates.are_fixed else "gate")
        in_gates = stage == "gate"
        record = {
            "stage": stage,
            "epoch": 1 + sum(earlier["stage"] == stage for earlier in self.records),
            "loss": float(loss),
            "accuracy": None if accuracy is None else float(accuracy),
            "tau": self.gated.tau if in_gates else None,
            "expected_macs": float(self.gated.expected_cost("macs")) if in_gates else None,
            "realised_macs": self.gated.realised_cost("macs") if in_gates else None,
            "target_macs": None if target is None else float(target),
        }
        self.records.append(record)
        return record

    def draw(self, path: str | os.PathLike[str], title: str = "") -> None:
        """Write a PNG: loss, accuracy, tau and costs over epochs, and the units kept in each channel group.

        Raises:
            LoopError: There is no epoch to draw.
        """
        if not self.records:
            raise LoopError(
                "Recorder.draw: no epoch was recorded, expected one or more. Call epoch(loss=..., accuracy=...) after "
                "each."
            )
        kept = {name: int(mask.sum()) for name, mask in self.gated.masks().items()}
        layers = [KeptLayer(group.name, kept[group.name], group.num_units) for group in self.gated.groups]
        dense = int(self.gated.dense_cost("macs"))
        if not title:
            share = self.gated.realised_cost("macs") / max(1, dense)
            title = f"{type(self.gated.model).__name__}: {share:.1%} of the MACs"
        draw_report(Path(path), title, self.records, layers, dense, self.loss_name)

    def __repr__(self) -> str:
        return f"Recorder({len(self.records)} epochs, {len(self.gated.groups)} channel groups)"
