"""Gates on a GPU that is not there: fake tensors know devices, and cannot be read by the host.

Mixed devices raise, and so does everything that would wait for the device, such as ``float(loss)``.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import prunegate
from prunegate.gates import ESTIMATORS
from prunegate.groups import copy_with, in_place_of
from tests.conftest import SmallNet
from tests.fake_gpu import grad, gradients

pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA.*:UserWarning")


class Attention(nn.Module):
    """Masked statistics, attention, and products of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(5, 16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        y = self.norm(x)
        b, n, _ = y.shape
        q, k, v = self.qkv(y).reshape(b, n, 3, 4, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1)
        return self.head((x + self.out(y)).mean(1))


MODELS = {
    "convolutions": (SmallNet, (3, 3, 7, 7)),
    "attention": (Attention, (2, 6, 5)),
    "test_vit": (lambda: timm.create_model("test_vit"), (2, 3, 160, 160)),
    "groups": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        (2, 3, 8, 8),
    ),
}


def to_fake_cuda(gated: prunegate.GatedModel) -> prunegate.GatedModel:
    """Replace all tensors, in place, by ones that claim to be on a GPU."""
    for module in gated.modules():
        for stored in (module._parameters, module._buffers):
            for name, tensor in stored.items():
                if tensor is not None:
                    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
                    stored[name] = in_place_of(tensor, made)
    gates = gated.gates
    gates._looked = ((id(gates.is_fixed), gates.is_fixed._version), False)  # what a real one would have read
    return gated


@functools.cache
def wrapped_once(name: str) -> prunegate.GatedModel:
    """For all tests, which must not change it."""
    made, shape = MODELS[name]
    torch.manual_seed(0)
    return prunegate.wrap(made(), torch.randn(shape))


def wrapped(name: str) -> tuple[prunegate.GatedModel, tuple[int, ...]]:
    return copy.deepcopy(wrapped_once(name)), MODELS[name][1]


def test_mixed_devices_and_reading_raise() -> None:
    """What the other tests here stand on."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        with pytest.raises(Exception, match=r"cuda.*cpu|cpu.*cuda"):
            torch.randn(3, device="cuda") * torch.randn(3)
        with pytest.raises(DataDependentOutputException):
            float(torch.randn((), device="cuda"))


@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_gate_step_stays_on_the_device_and_never_waits_for_it(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.autograd, "grad", grad)
    plain, shape = wrapped(name)
    if precision == "bfloat16":
        plain = plain.to(torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        gated = to_fake_cuda(plain).train()
        x = torch.randn(shape, device="cuda")
        if precision == "bfloat16":
            x = x.to(torch.bfloat16)
        steps = prunegate.GateSteps(gated, prunegate.Budget("macs", 0.5, ramp_steps=100), steps=100, fresh=False)
        steps.budget.count = 1  # whether it is stuck is looked at now and then, and that may wait
        for _ in range(3):
            with torch.autocast("cuda", torch.bfloat16, enabled=precision == "autocast"):
                out = gated(x)
            found = gradients([out.float().square().mean()], [None])
            for parameter in gated.parameters():
                assert found[id(parameter)].device.type == "cuda"
                assert found[id(parameter)].dtype == parameter.dtype
            gated.gates.logits.grad = found[id(gated.gates.logits)]
            steps.step()
        assert gated.gates.logits.device.type == "cuda"
        assert gated.gates.logits.grad is None


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_draws_on_the_device(estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.autograd, "grad", grad)
    plain, _ = wrapped("convolutions")
    with FakeTensorMode(allow_non_fake_inputs=True):
        gated = to_fake_cuda(plain).train()
        gated.gates.estimator = estimator
        mask = gated.gates.draw()
        found = gradients([mask.sum() + gated.expected_cost("macs")], [None])
        assert found[id(gated.gates.logits)].device.type == "cuda"
        assert mask.device.type == gated.gates.sample().device.type == "cuda"


@pytest.mark.parametrize("name", MODELS)
def test_masks_of_evaluation_stay_on_the_device(name: str) -> None:
    plain, shape = wrapped(name)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        gated = to_fake_cuda(plain).eval()
        gated.set_masks({g.name: torch.ones(g.num_units, dtype=torch.bool, device="meta") for g in gated.groups[:1]})
        assert gated(torch.randn(shape, device="cuda")).device.type == "cuda"
        gated.release_masks()
        assert gated.expected_cost("params").device.type == "cuda"


@pytest.mark.parametrize("name", MODELS)
def test_the_dry_run_of_wrap_stays_on_the_device(name: str) -> None:
    """What failed for every model on a GPU: a mask made on the CPU. Reading the comparison's numbers comes after it."""
    from prunegate.compaction import CutRuns
    from prunegate.compaction.dry_run import _halves, randomised_copy, value_fault_of

    plain = wrapped_once(name)
    keep, _ = _halves(plain.analysis, frozenset(group.name for group in plain.groups))
    runs = CutRuns.of(plain.trace, plain.analysis, keep, plain.example_inputs)
    dense = randomised_copy(plain.dense_copy(), plain.example_inputs)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = copy_with(dense, lambda t: in_place_of(t, torch.empty_like(t, device="cuda")))
        inputs = plain.example_inputs.map(lambda t: torch.empty_like(t, device="cuda"))
        with pytest.raises(DataDependentOutputException):
            value_fault_of(model, replace(runs, inputs=inputs), plain.fix_ups, torch.float32)


def test_inputs_elsewhere_than_the_model_are_refused() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = nn.Sequential(nn.Linear(4, 8, device="cuda"), nn.Linear(8, 2, device="cuda"))
        with pytest.raises(
            prunegate.TraceError, match=r"found tensors on cpu, expected them on cuda:0.*Move the inputs"
        ):
            prunegate.wrap(model, torch.randn(2, 4))


def test_a_model_without_weights_has_costs_and_masks() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    gated = prunegate.wrap(model, torch.randn(2, 4))
    assert gated.dense_cost("macs") == 48
    gated.harden(("macs", 24))
    assert gated.realised_cost("macs") == 24
    assert gated(torch.randn(2, 4, device="meta")).shape == (2, 2)
