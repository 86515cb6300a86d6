"""Mistakes that users make in their first hour: each gives one clear error of the right class."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import prunegate
from prunegate import (
    Budget,
    BudgetError,
    CheckpointError,
    CompactionError,
    DivergedError,
    GatedModel,
    GateSteps,
    MaskError,
    NotGatedError,
    PrunegateError,
    TauSchedule,
    TraceError,
)

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def gated_model(model: nn.Module | None = None) -> GatedModel:
    return prunegate.wrap(model or net(), X).train()


def compaction() -> prunegate.Compaction:
    gated = gated_model()
    gated.set_masks({"0": torch.arange(16) < 8})
    return prunegate.compact(gated)


def wrapped_for_many(model: nn.Module) -> nn.Module:
    """As DistributedDataParallel holds it, without the processes."""
    around = DistributedDataParallel.__new__(DistributedDataParallel)
    nn.Module.__init__(around)
    around.module = model
    return around


# --- what is no gated model ---------------------------------------------------------------------------------------

TAKES_GATED: dict[str, Callable[[Any], object]] = {
    "compact": prunegate.compact,
    "GateSteps": lambda model: GateSteps(model, 0.5, steps=3),
    "TauSchedule": lambda model: TauSchedule(model, steps=3),
    "recover": lambda model: prunegate.recover(model, lambda: [(X, X)]),
    "Budget.penalty": lambda model: Budget("macs", 0.5).penalty(model),
}


@pytest.mark.parametrize("name", TAKES_GATED)
@pytest.mark.parametrize(
    ("make", "found"),
    [
        (net, r"found a Sequential, expected a gated model\. Make one first: gated = prunegate\.wrap\("),
        (lambda: wrapped_for_many(gated_model()), r"found a DistributedDataParallel around a gated model.*\.module"),
    ],
)
def test_what_is_no_gated_model_is_told(name: str, make: Callable[[], Any], found: str) -> None:
    with pytest.raises(NotGatedError, match=f"^{name}: {found}"):
        TAKES_GATED[name](make())


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (
            lambda: nn.Linear,
            r"found the class Linear, expected a gated model\. Make an instance.*wrap\(Linear\(\.\.\.\)",
        ),
        (compaction, r"found a Compaction, .*has been compacted already: its \.model is an ordinary module"),
        (lambda: None, "found a NoneType, expected a gated model"),
        (lambda: compaction().model, r"found a Sequential, expected a gated model\."),
    ],
)
def test_other_things_are_told_too(make: Callable[[], Any], found: str) -> None:
    with pytest.raises(NotGatedError, match=f"^compact: {found}"):
        prunegate.compact(make())


def test_a_compiled_gated_model_is_taken_for_what_it_is() -> None:
    gated = gated_model()
    steps = GateSteps(torch.compile(gated, backend="eager"), 0.5, steps=3)
    assert steps.gated is gated
    gated.harden(steps.budget)
    assert prunegate.compact(torch.compile(gated, backend="eager")).costs["macs"]["compact"] == gated.realised_cost()


# --- what wrap is given -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "inputs", "message"),
    [
        (lambda: nn.Linear, X, r"model: found the class Linear, expected an instance of it\. Call wrap\(Linear\("),
        (lambda: net, X, "model: found a function, expected a torch.nn.Module"),
        (lambda: wrapped_for_many(net()), X, r"found a DistributedDataParallel, .*wrap\(model\.module, inputs\)"),
        (
            lambda: nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 3)),
            X,
            r"0\.weight: .*no shape yet.*Call model\(batch\)",
        ),
        (
            net,
            torch.zeros(2, 9),
            r"example.inputs.* RuntimeError: mat1 and mat2 shapes cannot be multiplied \(2x9 and 8x16\)",
        ),
        (net, torch.zeros(2, 8, dtype=torch.long), r"the model raises RuntimeError on \(2, 8\) of int64: "),
        (net, None, "example_inputs: found NoneType, expected a tensor, a tuple of arguments or a dict"),
        (net, (2, 8), "example_inputs: found no tensor, expected at least one"),
        (net, X * math.nan, "example_inputs: found NaN, expected numbers"),
    ],
)
def test_wrap_says_what_it_cannot_take(make: Callable[[], Any], inputs: Any, message: str) -> None:
    with pytest.raises(TraceError, match=f"(?s){message}"):
        prunegate.wrap(make(), inputs)


# --- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Budget("macs", "50%"), r"budget\.fraction: found '50%', expected a number in \(0, 1\].*Write 0\.5"),
        (lambda: Budget("macs", True), r"budget\.fraction: found True, expected a number"),
        (lambda: Budget("macs", {"macs": 0.5}), r"budget\.fraction: found \{'macs': 0\.5\}, expected a number"),
        (lambda: Budget("macs", math.nan), r"budget\.fraction: found nan"),
        (
            lambda: Budget(0.5),
            r"budget\.metric: found 0\.5, expected one of macs, .*memory_mb\. Use Budget\('macs', 0\.5\)",
        ),
        (lambda: Budget("macs", limit="1e6"), r"budget\.limit: found '1e6', expected a positive cost"),
        (lambda: Budget("macs", limit=math.inf), r"budget\.limit: found inf"),
        (lambda: Budget("macs", 0.5, ramp_steps=-1), r"budget\.ramp_steps: found -1, expected a number of steps"),
        (lambda: Budget("macs", 0.5, ramp_from="a"), r"budget\.ramp_from: found 'a', expected a fraction"),
        (lambda: Budget("macs", 0.5, margin=2), r"budget\.margin: found 2, expected a fraction"),
        (lambda: Budget("macs", 0.5, quadratic="x"), r"budget\.quadratic: found 'x', expected a number of at least 0"),
        (lambda: GateSteps(gated_model(), "50%", steps=3), r"budget\.fraction: found '50%'"),
        (lambda: GateSteps(gated_model(), steps="10"), r"steps: found '10', expected a whole number of at least 1"),
        (lambda: GateSteps(gated_model(), steps=10.5), r"steps: found 10\.5, expected a whole number"),
        (lambda: GateSteps(gated_model(), steps=9, frozen="a"), r"frozen: found 'a', expected a share of the steps"),
        (
            lambda: GateSteps(gated_model(), steps=9, tau_start="a"),
            "tau: found start 'a' and end 0.1, expected 0 < end",
        ),
        (lambda: GateSteps(gated_model(), steps=9, learning_rate="a"), "learning_rate: found 'a', expected a number"),
        (
            lambda: gated_model().harden(0.5),
            r"harden: found 0\.5, expected a Budget.*Call harden\(Budget\('macs', 0\.5\)\)",
        ),
        (lambda: gated_model().harden("50%"), r"harden: found '50%', expected a Budget, or a metric and its absolute"),
        (lambda: gated_model().harden(None), r"harden: found None, expected a Budget"),
        (lambda: gated_model().harden([Budget("macs", 0.5)]), r"harden: found \[Budget.*expected a Budget"),
        (
            lambda: gated_model().harden(("macs", 0.5)),
            r"harden: found 0\.5 macs, expected an absolute limit such as 176",
        ),
        (lambda: gated_model().harden(("macs", 1, 2)), r"harden: found \('macs', 1, 2\), expected"),
        (lambda: setattr(gated_model(), "tau", "a"), "tau: found 'a', expected a number above 0"),
    ],
)
def test_numbers_that_are_none_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        make()


@pytest.mark.parametrize("steps", [10, 10.0])
def test_whole_numbers_of_any_type_will_do(steps: Any) -> None:
    assert GateSteps(gated_model(), steps=steps, frozen=0.5).tau.steps == 5


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([torch.ones(16)], "masks: found a list, expected a dict from the names of channel groups"),
        (torch.ones(16), "masks: found a Tensor, expected a dict"),
        ({"0": "abc"}, "0: found a str as its mask, expected 16 truth values"),
        ({"0": torch.full((16,), 0.3)}, r"0: found a mask with numbers other than 0 and 1.*gated\.harden\(budget\)"),
        ({"0": torch.full((16,), math.nan)}, "0: found a mask with numbers other than 0 and 1"),
    ],
)
def test_masks_that_are_none_are_refused(masks: Any, message: str) -> None:
    gated = gated_model()
    with pytest.raises(MaskError, match=message):
        gated.set_masks(masks)
    assert not gated.gates.are_fixed


# --- NaN ----------------------------------------------------------------------------------------------------------


def with_nan(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        module.get_parameter("0.weight")[0, 0] = math.nan
    return module


def test_nan_weights_are_noticed_where_gates_start() -> None:
    with pytest.raises(DivergedError, match=r"magnitudes: found weights that are not finite in 0\.weight, expected"):
        GateSteps(gated_model(with_nan(net())), steps=3)


def test_nan_in_a_batch_is_noticed_before_the_gates_step() -> None:
    gated = gated_model()
    steps, optimizer = GateSteps(gated, steps=10), torch.optim.SGD(gated.weight_parameters(), lr=0.1)

    def train() -> None:
        for step in range(10):
            optimizer.zero_grad()
            gated(X * (math.nan if step == 3 else 1.0)).sum().backward()
            steps.step()
            optimizer.step()

    with pytest.raises(DivergedError, match=r"GateSteps\.step: step 3: found a gradient of the logits that is not"):
        train()
    assert all(bool(torch.isfinite(parameter).all()) for parameter in gated.parameters())


def test_nan_in_an_own_loop_is_noticed_at_the_next_step() -> None:
    gated = gated_model()
    budget, logits = Budget("macs", 0.5), torch.optim.Adam(gated.gate_parameters(), lr=0.1)
    weights = torch.optim.SGD(gated.weight_parameters(), lr=0.01)

    def train() -> None:
        for step in range(10):
            gated.zero_grad()
            (gated(X * (math.nan if step == 3 else 1.0)).sum() + budget.penalty(gated)).backward()
            logits.step()
            weights.step()
            budget.step()

    with pytest.raises(DivergedError, match="budget: step 4: the expected macs are not finite"):
        train()
    with pytest.raises(DivergedError, match="harden: found logits that are not finite, expected numbers"):
        gated.harden(budget)


@pytest.mark.parametrize("name", ["model.0.weight", "model.1.running_mean"])
def test_nan_weights_are_not_compacted(name: str) -> None:
    gated = gated_model()
    gated.set_masks({"0": torch.arange(16) < 8})
    with torch.no_grad():
        gated.state_dict()[name].view(-1)[0] = math.nan
    with pytest.raises(CompactionError, match=f"compact: found NaN in {name.removeprefix('model.')}, expected numbers"):
        prunegate.compact(gated)


# --- loading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "gpu"}, "load: device: found 'gpu', expected one that this machine has, such as cpu"),
        ({"dtype": "float16"}, r"load: dtype: found 'float16', expected a type of torch, such as torch\.float16"),
        ({"model": nn.Linear}, r"model: Linear\(\) raised TypeError: .*missing.*Pass a dense instance with the arg"),
        ({"model": 3}, "model: found a int, expected a dense instance, or a function that makes one"),
    ],
)
def test_load_says_what_it_cannot_take(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    path = tmp_path / "m.safetensors"
    compaction().save(path)
    with pytest.raises(CheckpointError, match=message):
        prunegate.load(path, **{"model": net, **given})


def test_a_device_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, device: Any = None, **__: Any) -> None:
        raise AssertionError("Torch not compiled with CUDA enabled")

    path = tmp_path / "m.safetensors"
    compaction().save(path)
    monkeypatch.setattr(torch, "empty", absent)
    with pytest.raises(
        CheckpointError, match=r"load: device: found 'cuda', .*torch says: Torch not compiled with CUDA"
    ):
        prunegate.load(path, model=net, device="cuda")


def test_load_without_a_path_is_told() -> None:
    path: Any = 3
    with pytest.raises(CheckpointError, match="load: found 3, expected the path of a checkpoint"):
        prunegate.load(path)


def test_a_model_that_does_not_fit_is_refused_without_torchs_own_logs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.safetensors"
    compaction().save(path)
    for other in (nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(15, 3)), nn.Conv2d(1, 1, 1)):
        with pytest.raises(PrunegateError):
            prunegate.load(path, model=other)
    assert capfd.readouterr().err == ""
