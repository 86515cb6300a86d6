"""Learning from a teacher beside the labels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunegate import RecipeError
from prunegate.training import Distillation, TrainingPlan, fit


def fixed(scores: torch.Tensor) -> nn.Module:
    class Fixed(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            assert not torch.is_grad_enabled()
            assert not self.training
            return scores

    return Fixed()


def test_loss_is_that_of_hinton_and_others() -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(5, 3), torch.randn(5, 3, requires_grad=True)
    label_loss = F.cross_entropy(student, torch.tensor([0, 1, 2, 0, 1]))
    p, q = (teacher / 2.0).softmax(1), (student / 2.0).softmax(1)
    expected = 0.3 * label_loss + 0.7 * 4.0 * (p * (p / q).log()).sum(1).mean()
    found = Distillation(fixed(teacher), weight=0.7, temperature=2.0).loss(torch.zeros(5), student, label_loss)
    torch.testing.assert_close(found, expected)


def test_student_of_the_same_scores_has_nothing_to_learn_from_its_teacher() -> None:
    scores = torch.randn(4, 3, requires_grad=True)
    loss = Distillation(fixed(scores.detach()), weight=1.0).loss(torch.zeros(4), scores, torch.tensor(7.0))
    loss.backward()
    assert abs(float(loss.detach())) < 1e-5
    assert scores.grad is not None
    assert scores.grad.abs().max() < 1e-6


def test_without_labels_that_tell_anything_the_student_learns_what_the_teacher_knows() -> None:
    torch.manual_seed(0)
    teacher, student = nn.Linear(6, 3), nn.Linear(6, 3)
    images = torch.randn(256, 6)
    labels = torch.randint(3, (256,))
    plan = TrainingPlan("finetune", 60, 0.5, weight_decay=0.0)

    def agreement() -> float:
        return float((teacher(images).argmax(1) == student(images).argmax(1)).float().mean())

    before = agreement()
    for _ in fit(
        student,
        lambda epoch: [(images, labels)],
        1,
        plan,
        lambda model: 0.0,
        distillation=Distillation(teacher, weight=1.0, temperature=1.0),
    ):
        pass
    assert before < 0.8 < 0.95 < agreement()


@pytest.mark.parametrize(("weight", "temperature"), [(1.5, 4.0), (-0.1, 4.0), (0.5, 0.0)])
def test_values_out_of_range_are_refused(weight: float, temperature: float) -> None:
    with pytest.raises(RecipeError, match="expected a weight in"):
        Distillation(nn.Identity(), weight, temperature)
