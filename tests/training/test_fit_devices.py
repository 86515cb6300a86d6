"""Training on a GPU, on a machine without one.

Fake tensors say that they are on a GPU; they cannot be mixed with others, and to read one is an error, so a step that
passes waits for no device. What is looked at later is tried on the CPU, where it can be told to look as late.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.amp.grad_scaler import GradScaler

from prunegate.errors import DivergedError, RecipeError
from prunegate.training import Distillation, Fit, Processes, TrainingPlan, evaluate, fit
from prunegate.training import losses as losses_module
from prunegate.training.losses import Losses, Place
from prunegate.training.optimizers import _start_momentum, weight_optimizer

CUDA = torch.device("cuda", 0)
STEPS = 5


class OnFakeCuda(Processes):
    """One process whose device is a GPU that is not there: gradients are zeros, for autograd wants a real one."""

    def __init__(self) -> None:
        super().__init__()
        self.device = CUDA
        self.trained: list[nn.Parameter] = []

    def place(self, model: nn.Module) -> None:
        assert all(p.device == CUDA for p in model.parameters())

    def prepare(self, model: nn.Module, optimizers: list[torch.optim.Optimizer], uses_all: Any) -> Any:
        self.trained = list(model.parameters())
        return model, optimizers

    def backward(self, loss: torch.Tensor) -> None:
        assert loss.device == CUDA
        for parameter in self.trained:
            parameter.grad = torch.zeros_like(parameter)

    def release(self, model: nn.Module) -> None: ...


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the test all tensors are fake. What is looked at later is found to be finite."""
    monkeypatch.setattr(losses_module, "_copied", lambda value: lambda: 0.0)
    with FakeTensorMode():
        yield


def small_net() -> nn.Module:
    with torch.device(CUDA):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
        )


def batch(device: torch.device = CUDA) -> tuple[torch.Tensor, ...]:
    labels = torch.zeros(8, dtype=torch.int64, device=device)
    return torch.zeros(8, 3, 12, 12, device=device), labels, torch.arange(8)


def fake_fit(**changed: Any) -> Fit:
    plan = TrainingPlan("dense", 2, 0.1, optimizer="adamw", **changed)  # fused SGD cannot be had on fake tensors
    return Fit(small_net(), plan, STEPS, distillation=Distillation(small_net()), processes=OnFakeCuda())


@pytest.mark.parametrize("given", [CUDA, torch.device("cpu")])
@pytest.mark.parametrize(
    "changed", [{}, {"accumulation_steps": 2, "clip_norm": 1.0}], ids=["plain", "clipped in parts"]
)
def test_step_on_a_gpu_waits_for_nothing(fake_cuda: None, changed: dict[str, Any], given: torch.device) -> None:
    made = fake_fit(**changed)
    for _ in range(3):
        made._train_on(batch(given), 0)
    assert made.step == 3
    with pytest.raises(DataDependentOutputException):  # the epoch's mean is read, once
        made._losses.mean()


def test_batches_that_may_be_passed_over_are_looked_at_at_once(fake_cuda: None) -> None:
    made = fake_fit(nonfinite_batches=1)
    with pytest.raises(DataDependentOutputException):
        made._train_on(batch(), 0)


def test_evaluation_on_a_gpu_reads_one_number(fake_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    given = 0

    def batches() -> Iterator[tuple[torch.Tensor, ...]]:
        nonlocal given
        for device in (CUDA, torch.device("cpu"), CUDA):
            yield batch(device)
            given += 1

    with pytest.raises(DataDependentOutputException):
        evaluate(small_net(), batches())
    assert given == 3, "a batch was read before the next was made"


@pytest.mark.parametrize(("name", "fused"), [("sgd", True), ("adamw", True), ("nadam", None), ("lamb", None)])
def test_optimisers_are_fused_on_a_gpu_where_torch_can(fake_cuda: None, name: str, fused: bool | None) -> None:
    plan = TrainingPlan("dense", 1, 0.1, optimizer=name)
    assert weight_optimizer(small_net(), plan).param_groups[0].get("fused") == fused
    with torch.device("cpu"):
        assert not weight_optimizer(nn.Linear(2, 2), plan).param_groups[0].get("fused")


def test_fused_momentum_starts_from_zero_as_torchs_own_start_does() -> None:
    """torch has the kernel for the CPU too."""

    def trained(start: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        optimizer = torch.optim.SGD(
            model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1, fused=True
        )
        if start:
            _start_momentum(optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
        return model.weight.detach()

    assert torch.equal(trained(True), trained(False))


# ---------------------------------------------------------------------------------------------
# Looking later


def late(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[Fit.__module__]  # the package has a function of this name
    monkeypatch.setattr(module, "Losses", lambda plan, processes: Losses(plan, processes, at_once=False))


def numbered(bad: int | None) -> Any:
    """Batches of four samples, numbered through; those of one step are not finite."""

    def batches(epoch: int) -> Iterator[tuple[torch.Tensor, ...]]:
        for step in range(STEPS):
            inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
            if epoch * STEPS + step == bad:
                inputs[2] = torch.nan
            yield inputs, torch.arange(4) % 3, torch.arange(4) + 4 * step

    return batches


def train(bad: int | None, **changed: Any) -> tuple[list[Any], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    plan = TrainingPlan("dense", 2, 0.1, **changed)
    records = list(fit(model, numbered(bad), STEPS, plan, lambda _: 0.0))
    return records, {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("parts", [1, 2])
def test_looking_later_changes_no_number(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    records, weights = train(None, accumulation_steps=parts)
    late(monkeypatch)
    found, others = train(None, accumulation_steps=parts)
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    for one, other in zip(records, found, strict=True):
        assert math.isclose(one.loss, other.loss, rel_tol=1e-12)


@pytest.mark.parametrize("bad", range(2 * STEPS))
def test_looking_later_stops_at_the_same_step_with_the_same_words(monkeypatch: pytest.MonkeyPatch, bad: int) -> None:
    with pytest.raises(DivergedError) as at_once:
        train(bad)
    late(monkeypatch)
    records = []
    torch.manual_seed(0)
    plan = TrainingPlan("dense", 2, 0.1)
    with pytest.raises(DivergedError) as later:
        records.extend(fit(nn.Linear(6, 3), numbered(bad), STEPS, plan, lambda _: 0.0))
    assert str(later.value) == str(at_once.value)
    first = 4 * (bad % STEPS)
    assert f"epoch {bad // STEPS + 1}, step {bad}: the loss is nan" in str(later.value)
    assert f"the training samples {first}, {first + 1}, {first + 2}, {first + 3}." in str(later.value)
    assert len(records) == bad // STEPS, "an epoch was recorded with a loss that is no number"


def test_state_is_not_given_before_the_last_loss_has_been_looked_at() -> None:
    losses = Losses(TrainingPlan("dense", 1, 0.1), Processes(), at_once=False)
    losses.add(torch.tensor(1.0), 4, Place(0, 0, 0.1, None))
    assert losses.state_dict() == {"loss_sum": 4.0, "samples": 4, "passed_over": 0}
    losses.add(torch.tensor(torch.inf), 4, Place(0, 1, 0.1, None))
    with pytest.raises(DivergedError, match="dense, epoch 1, step 1: the loss is inf"):
        losses.state_dict()


# ---------------------------------------------------------------------------------------------
# fp16: the scaler is torch's, which there is for the CPU too


class Scaled(Processes):
    """Loss scaling as fp16 brings it, in float32."""

    def __init__(self, scale: float = 2.0**10) -> None:
        super().__init__()
        self._accelerator.scaler = GradScaler("cpu", init_scale=scale, growth_interval=2)

    def backward(self, loss: torch.Tensor) -> None:
        self._accelerator.scaler.scale(loss).backward()


def two_steps(processes: Processes, gradients: list[float]) -> list[list[float]]:
    """Two weights with an optimiser each; the weights after every step."""
    weights = [nn.Parameter(torch.zeros(())) for _ in range(2)]
    _, optimizers = processes.prepare(
        nn.ParameterList(weights), [torch.optim.SGD([weight], lr=1.0) for weight in weights], lambda: True
    )
    seen = []
    for gradient in gradients:
        for optimizer in optimizers:
            optimizer.zero_grad()
        processes.backward(gradient * (weights[0] + weights[1]))
        processes.step(optimizers)
        seen.append([float(weight.detach()) for weight in weights])
    return seen


def test_all_optimisers_step_under_one_loss_scale() -> None:
    expected = two_steps(Processes(), [1.0] * 6)
    assert expected[-1] == [-6.0, -6.0]
    assert two_steps(Scaled(), [1.0] * 6) == expected, "the scale, which grows, reached a gradient of another scale"


def test_step_that_overflows_is_left_out_and_the_scale_falls() -> None:
    processes = Scaled(2.0**100)
    assert two_steps(processes, [1.0, 2.0**30, 1.0]) == [[-1.0, -1.0], [-1.0, -1.0], [-2.0, -2.0]]
    state = processes.loss_scale_state()
    assert state is not None
    assert state["scale"] == 2.0**99


def test_overflow_is_no_divergence_and_the_scale_is_in_the_state() -> None:
    def loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return 8.0 * F.cross_entropy(scores, labels)  # for some steps too much for the scale

    def made(processes: Processes) -> Fit:
        torch.manual_seed(0)
        return Fit(nn.Linear(6, 3), TrainingPlan("dense", 1, 0.1), STEPS, loss=loss, processes=processes)

    fitted, steps = made(Scaled(2.0**127)), numbered(None)
    (record,) = fitted.epochs(lambda epoch, first: steps(epoch), lambda _: 0.0)
    assert math.isfinite(record.loss)
    state = fitted.state_dict()
    assert state["loss_scale"]["scale"] <= 2.0**125
    other = Scaled()
    made(other).load_state_dict(state)
    assert other.loss_scale_state() == state["loss_scale"]


def test_fp16_is_refused_where_there_is_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match=r"^training\.precision: found fp16 .*CUDA.*Set training\.precision=bf16"):
        Processes("fp16")
