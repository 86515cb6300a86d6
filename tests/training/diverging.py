"""Trains in several processes, of which the last meets a loss that is no number, and tells what each of them said.

Losses are looked at one step later, as on GPUs. Each process writes ``OUT/rank<rank>.pt``: the error, and the records.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from prunegate.errors import DivergedError
from prunegate.training import EpochRecord, Fit, Processes, TrainingPlan
from prunegate.training.losses import Losses

STEPS, BAD = 4, 6


def main(out: Path) -> None:
    processes = Processes()
    torch.manual_seed(0)
    made = Fit(nn.Linear(3, 2), TrainingPlan("dense", 2, 0.1), STEPS, processes=processes)
    made._losses = Losses(made.plan, processes, at_once=False)

    def batches(epoch: int, first: int) -> Iterator[tuple[torch.Tensor, ...]]:
        for step in range(STEPS * epoch, STEPS * (epoch + 1)):
            inputs = torch.full((2, 3), float(step + processes.rank))
            if (step, processes.rank) == (BAD, processes.count - 1):
                inputs[0] = torch.nan
            yield inputs, torch.zeros(2, dtype=torch.int64), torch.tensor([10 * step, 10 * step + processes.rank])

    records: list[EpochRecord] = []
    error = ""
    try:
        records.extend(made.epochs(batches, lambda _: 0.0))
    except DivergedError as raised:
        error = str(raised)
    torch.save({"error": error, "losses": [record.loss for record in records]}, out / f"rank{processes.rank}.pt")
