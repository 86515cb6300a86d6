"""The tasks: a model, real data, and how long and with what everybody trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from safetensors.torch import load_model, save_model
from torch import nn

from accuracy.mobilenet import mobilenet
from prunegate.builders import Builder
from prunegate.data import Batch, Data, DataSettings, load_data
from prunegate.files import replacing
from prunegate.training import Distillation, GateTraining, TrainingPlan, fit

BUDGETS = (0.5, 0.25, 0.1)


@dataclass(frozen=True)
class Task:
    """One task; optimiser and rates are the same for every method.

    Attributes:
        dense_epochs: Epochs of the dense model that every method starts from.
        epochs: Epochs that every method may spend after that, whatever it does in them.
        learning_rate: Peak rate of the dense training; what comes after runs at `later_rate` of it.
        seeds: How many seeds make the table.
    """

    name: str
    model: str | Callable[..., nn.Module]
    arguments: Mapping[str, Any]
    data: DataSettings
    dense_epochs: int
    epochs: int
    learning_rate: float
    seeds: int = 3
    optimizer: str = "sgd"
    weight_decay: float = 5e-4
    later_rate: float = 0.5

    def build(self) -> nn.Module:
        if callable(self.model):
            return self.model(**self.arguments)
        return Builder.parse(self.model, self.arguments).build()

    def plan(self, stage: str, epochs: int, final_fraction: float = 0.0) -> TrainingPlan:
        """How the weights are trained: along a cosine from the peak to this fraction of it."""
        dense = stage == "dense"
        return TrainingPlan(
            stage,
            epochs,
            self.learning_rate * (1.0 if dense else self.later_rate),
            self.optimizer,
            weight_decay=self.weight_decay,
            warmup_epochs=1.0 if dense else 0.0,
            final_learning_rate_fraction=final_fraction,
        )


_DIGITS = DataSettings(name="digits", image_size=16, batch_size=64, augment="shift")
_FASHION = DataSettings(name="fashion_mnist", image_size=16, batch_size=128, augment="shift_flip", train_limit=20_000)
_FASHION_TRAINING: dict[str, Any] = {"dense_epochs": 12, "epochs": 10, "learning_rate": 0.1}
_DIGITS_TRAINING: dict[str, Any] = {
    "epochs": 30, "learning_rate": 2e-3, "seeds": 10, "optimizer": "adamw", "weight_decay": 0.05,
}  # fmt: skip
_SMALL_VIT = {
    "img_size": 16, "patch_size": 4, "in_chans": 1, "num_classes": 10, "embed_dim": 64, "depth": 4, "num_heads": 4,
}  # fmt: skip

TASKS = {
    task.name: task
    for task in (
        Task(
            "fashion_resnet14",
            "prunegate/cifar_resnet14",
            {"in_chans": 1},
            _FASHION,
            **_FASHION_TRAINING,
        ),
        Task(
            "fashion_mobilenetv2",
            mobilenet,
            {},
            _FASHION.model_copy(update={"image_size": 32}),
            **_FASHION_TRAINING,
        ),
        Task(
            "digits_vit",
            "timm/vit_tiny_patch16_224",
            _SMALL_VIT,
            _DIGITS,
            dense_epochs=100,
            **_DIGITS_TRAINING,
        ),
        # Looked at only after every setting was fixed.
        Task(
            "digits_convnext",
            "timm/test_convnext",
            {"in_chans": 1, "num_classes": 10},
            _DIGITS.model_copy(update={"image_size": 32}),
            dense_epochs=40,
            **_DIGITS_TRAINING,
        ),
    )
}


@cache
def data_of(task: str) -> Data:
    return load_data(TASKS[task].data)


def batches(task: Task, seed: int, epoch: int) -> Iterator[Batch]:
    """The batches of one epoch: the same for every method, and other ones for each seed."""
    return data_of(task.name).train_batches(seed, epoch)


def example(task: Task) -> torch.Tensor:
    return torch.zeros(2, *data_of(task.name).shape)


def train(
    model: nn.Module,
    task: Task,
    seed: int,
    plan: TrainingPlan,
    first_epoch: int = 0,
    gates: GateTraining | None = None,
    teacher: nn.Module | None = None,
) -> None:
    """One stage, on the batches of the epochs from ``first_epoch`` on; nothing is measured on the way."""
    steps = data_of(task.name).steps_per_epoch
    distillation = None if teacher is None else Distillation(teacher)

    def batches_of(epoch: int) -> Iterator[Batch]:
        return batches(task, seed, first_epoch + epoch)

    for _ in fit(model, batches_of, steps, plan, lambda model: 0.0, gates, distillation):
        pass


def dense_model(task: Task, seed: int, folder: Path) -> nn.Module:
    """The dense model that every method starts from, trained once and kept in ``folder``."""
    set_seed(seed)
    model = task.build()
    path = folder / f"{task.name}-{seed}.safetensors"
    if path.exists():
        load_model(model, path)
        return model
    train(model, task, seed, task.plan("dense", task.dense_epochs))
    folder.mkdir(exist_ok=True)
    with replacing(path) as temporary:
        save_model(model, str(temporary))
    return model
