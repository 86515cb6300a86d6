"""Distillation: the compact model learns from the dense model's outputs as well as from the labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from prunegate.errors import RecipeError


@dataclass(frozen=True)
class Distillation:
    """The loss of a student model that learns from a teacher.

    Attributes:
        teacher: Computes class scores for the same inputs; runs in eval mode, without gradients.
        weight: Share of the teacher's term in the loss, in [0, 1]; the rest is for the labels.
        temperature: Divides the scores of both before they are compared, > 0.

    Raises:
        RecipeError: A weight or temperature out of range.

    Reference:
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
    """

    teacher: nn.Module
    weight: float = 0.5
    temperature: float = 4.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight <= 1.0 or not self.temperature > 0.0:
            raise RecipeError(
                f"distillation: found weight {self.weight} and temperature {self.temperature}, expected a weight in "
                "[0, 1] and a temperature above 0. Start with 0.5 and 4."
            )
        self.teacher.eval()

    def loss(self, inputs: torch.Tensor, scores: torch.Tensor, label_loss: torch.Tensor) -> torch.Tensor:
        """The student's loss: 0-d, ``(1 − weight) · label_loss + weight · T² · KL(teacher ‖ student)``.

        Args:
            scores: The student's class scores, shape (batch, classes).
        """
        with torch.no_grad():
            target = (self.teacher(inputs) / self.temperature).log_softmax(1)
        result = (scores / self.temperature).log_softmax(1)
        divergence = F.kl_div(result, target, reduction="batchmean", log_target=True)
        # Softening the scores makes gradients smaller by T²; the factor compensates.
        return (1.0 - self.weight) * label_loss + self.weight * self.temperature**2 * divergence
