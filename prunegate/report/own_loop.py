"""The curves of a loop of the user's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from prunegate.errors import LoopError
from prunegate.report.curves import KeptLayer, draw_report
from prunegate.wrapping import GatedModel, gated_model


class Recorder:
    """Notes what each epoch of a loop comes to, and draws it as recipes draw their runs::

        record = prunegate.report.Recorder(gated)
        for epoch in range(epochs):
            ...  # train, and measure
            record.epoch(loss=loss, accuracy=accuracy, target=budget.target(gated))
        record.draw("report.png")

    Attributes:
        records: One dict for each epoch, of plain numbers: the form of a run's ``metrics.jsonl``.

    Args:
        gated: Its tau, costs and kept units are noted.
        loss_name: What the loss is, for its curve's title: ``"cross entropy"``.

    Raises:
        NotGatedError: ``gated`` is no gated model.
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
        """Note one epoch.

        Args:
            loss: Mean training loss.
            accuracy: On data that was not trained on, in [0, 1].
            target: MACs per sample that the budget asks for at present, `Budget.target`.
            stage: ``"gate"`` while masks are drawn and ``"finetune"`` when they are fixed, if not given.

        Returns:
            The record, which is the last of `records` too.
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
                "Recorder.draw: found no epoch, expected one or more. Call epoch(loss=..., accuracy=...) after each."
            )
        kept = {name: int(mask.sum()) for name, mask in self.gated.masks().items()}
        layers = [KeptLayer(group.name, kept[group.name], group.num_units) for group in self.gated.groups]
        dense = self.gated.dense_cost("macs")
        if not title:
            share = self.gated.realised_cost("macs") / max(1, dense)
            title = f"{type(self.gated.model).__name__}: {share:.1%} of the MACs"
        draw_report(Path(path), title, self.records, layers, dense, self.loss_name)

    def __repr__(self) -> str:
        return f"Recorder({len(self.records)} epochs, {len(self.gated.groups)} channel groups)"
