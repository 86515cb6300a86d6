"""Trains gates and weights for some steps, in one process or under torchrun in several, and tells what came of it.

    torchrun --nproc-per-node 2 -m tests.training.together OUT ESTIMATOR... [diverging]

What `tests.training.diverging` does comes in the same processes, since to start them takes longer than to train. Each
process writes ``OUT/<estimator>-rank<rank>.pt``: the parameters at the end, the hard masks of every evaluation, and the
losses. The model has no BatchNorm, whose statistics each process takes over its own part of the batch.
"""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch
from torch import nn

from prunegate import Budget, TauSchedule, wrap
from prunegate.data import DataSettings, Share, load_data
from prunegate.training import Fit, GateTraining, Processes, TrainingPlan, evaluate
from tests.training import diverging

STEPS, EPOCHS = 10, 2


def main(out: Path, estimator: str) -> None:
    torch.set_num_threads(1)
    processes = Processes()
    share = Share(processes.rank, processes.count)
    data = load_data(DataSettings(name="digits", image_size=32, batch_size=32, train_limit=32 * STEPS, augment="shift"))
    torch.manual_seed(0)
    model = timm.create_model("test_convnext", in_chans=1, num_classes=10)
    if estimator == "sigmoid":  # otherwise every parameter has to have a gradient, the frozen gates' logits as well
        model.spare = nn.Linear(2, 2)  # in no forward, so that its gradient never comes
    gated = wrap(model, data.example_inputs(2))
    gated.gates.estimator = estimator
    gated.gates.start_at(0.9, gated.magnitudes())
    gated.gates.generator.manual_seed(processes.rank)
    total = STEPS * EPOCHS
    budget, tau = Budget("macs", 0.5, ramp_steps=total // 2), TauSchedule(gated, steps=total)
    gates = GateTraining(budget, tau, 0.5, freeze_after=total - 3)
    plan = TrainingPlan("gate", EPOCHS, 0.05, accumulation_steps=2, clip_norm=5.0)
    masks = []

    def accuracy(model: nn.Module) -> float:
        masks.append(gated.gates.hard_mask().clone())
        return evaluate(model, data.test_batches(share), processes)

    fit = Fit(gated, plan, data.steps_per_epoch, gates, processes=processes, example_inputs=data.example_inputs(2))
    records = list(fit.epochs(lambda epoch, first: data.train_batches(0, epoch, first, share), accuracy))
    masks.append(gated.gates.hard_mask().clone())
    gated.harden(Budget("macs", 0.5))
    masks.append(gated.gates.hard_mask().clone())
    parameters = {name: parameter.detach() for name, parameter in gated.named_parameters()}
    figures = [[record.loss, record.accuracy, record.expected_macs] for record in records]
    torch.save(
        {"parameters": parameters, "masks": masks, "figures": figures}, out / f"{estimator}-rank{processes.rank}.pt"
    )


if __name__ == "__main__":
    for name in sys.argv[2:]:
        if name == "diverging":
            diverging.main(Path(sys.argv[1]))
        else:
            main(Path(sys.argv[1]), name)
