"""What only a GPU can show; every test is skipped where there is none. `tools/device.sh` runs them on one."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.checkpoint import checkpoint

import prunegate
from prunegate.gates import kernels
from prunegate.gates.masked_norm import by_operations, masked_layer_norm
from prunegate.gates.masking import MaskedAxes, _by_operations, masked_weights
from tests.conftest import SmallNet, random_masks
from tests.gates.test_devices import Attention

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
CUDA = torch.device("cuda", 0)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutions": (SmallNet, (3, 3, 7, 7)),
    "attention": (Attention, (2, 6, 5)),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), (2, 3, 64, 64)),
    "test_vit": (lambda: timm.create_model("test_vit", num_classes=10), (2, 3, 160, 160)),
    "test_convnext": (lambda: timm.create_model("test_convnext", num_classes=10), (2, 3, 64, 64)),
}


def made(name: str, device: torch.device = CUDA) -> tuple[nn.Module, torch.Tensor]:
    build, shape = MODELS[name]
    torch.manual_seed(0)
    model = build()
    return model.to(device), torch.randn(shape).to(device)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


@pytest.fixture
def plain_float32() -> Iterator[None]:
    """Without the shorter formats of the matrix units, which would hide differences."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_gated_trained_and_compacted_on_the_gpu(name: str, tmp_path: Path) -> None:
    model, x = made(name)
    gated = prunegate.wrap(model, x).train()
    steps = prunegate.GateSteps(gated, 0.5, steps=10)
    optimizer = torch.optim.SGD(gated.weight_parameters(), 1e-3)
    for _ in range(10):
        optimizer.zero_grad()
        gated(x).square().mean().backward()
        steps.step()
        optimizer.step()
    steps.finish()
    result = prunegate.compact(gated)
    assert result.certificate.float64.max_rel <= 1e-9
    assert 0.9 < gated.realised_cost() / (0.5 * gated.dense_cost()) <= 1.0
    assert {p.device for p in result.model.parameters()} == {CUDA}
    result.save(tmp_path / "compact.safetensors")
    loaded = prunegate.load(tmp_path / "compact.safetensors", model=MODELS[name][0]()).to(CUDA).eval()
    with torch.no_grad():
        assert relative(loaded(x), result.model.eval()(x)) <= 1e-3  # with the matrix units' float32


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision(name: str, dtype: torch.dtype) -> None:
    model, x = made(name)
    gated = prunegate.wrap(model.to(dtype), x.to(dtype)).train()
    steps = prunegate.GateSteps(gated, 0.5, steps=3)
    for _ in range(3):
        gated(x.to(dtype)).float().square().mean().backward()
        steps.step()
    steps.finish()
    assert next(prunegate.compact(gated).model.parameters()).dtype == dtype


@pytest.mark.parametrize("name", MODELS)
def test_float16_with_a_scaler(name: str) -> None:
    """The logits get the penalty and the loss's gradient without its scale, as where nothing is scaled."""
    model, x = made(name)
    gated = prunegate.wrap(model, x).train()
    found = []
    for one, is_scaled in ((gated, True), (copy.deepcopy(gated), False)):
        scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
        steps = prunegate.GateSteps(one, 0.5, steps=20)
        optimizer = torch.optim.SGD(one.weight_parameters(), 1e-4)
        for _ in range(2):
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.float16):
                loss = one(x).float().square().mean()
            if is_scaled:
                scaler.scale(loss).backward()
                steps.step(scaler)
                scaler.step(optimizer)
                scaler.update()
            else:
                loss.backward()
                steps.step()
                optimizer.step()
            found.append(steps.optimizer.state[one.gates.logits]["exp_avg"].clone())
    for scaled, plain in zip(found[:2], found[2:], strict=True):  # small gradients underflow without a scale
        assert 0.5 < float(scaled.norm() / plain.norm()) < 2.0
        assert float(F.cosine_similarity(scaled, plain, dim=0)) > 0.8


@pytest.mark.parametrize("name", MODELS)
def test_the_gpu_compacts_to_what_the_cpu_does(name: str) -> None:
    model, x = made(name)
    on_gpu = prunegate.wrap(model, x)
    on_cpu = prunegate.wrap(copy.deepcopy(model).cpu(), x.cpu())
    with torch.no_grad():
        on_gpu.gates.logits.normal_(generator=torch.Generator(CUDA).manual_seed(0))
    on_cpu.load_state_dict(on_gpu.state_dict())
    assert [g.name for g in on_cpu.groups] == [g.name for g in on_gpu.groups]
    results = []
    for gated in (on_gpu, on_cpu):
        gated.harden(prunegate.Budget("macs", 0.5))
        results.append(prunegate.compact(gated))
    assert results[0].plan.kept == results[1].plan.kept
    first, second = (result.model.state_dict() for result in results)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key].cpu(), second[key]) for key in first)


def test_one_seed_gives_one_mask_on_both_devices() -> None:
    model, x = made("resnet18")
    on_gpu, on_cpu = prunegate.wrap(model, x).train(), prunegate.wrap(copy.deepcopy(model).cpu(), x.cpu()).train()
    for gated in (on_gpu, on_cpu):
        gated.gates.start_at(0.5)
        gated.gates.generator.manual_seed(7)
    for _ in range(5):
        assert torch.equal(on_gpu.gates.draw().cpu(), on_cpu.gates.draw())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_step_never_waits_for_the_gpu(name: str, autocast: bool) -> None:
    model, x = made(name)
    gated = prunegate.wrap(model, x).train()
    steps = prunegate.GateSteps(gated, prunegate.Budget("macs", 0.5, ramp_steps=50), steps=100)
    optimizer = torch.optim.SGD(gated.weight_parameters(), 1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            loss = gated(x).float().square().mean()
        loss.backward()
        steps.step()
        optimizer.step()

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _weights(dtype: torch.dtype) -> tuple[list[torch.Tensor], MaskedAxes]:
    torch.manual_seed(0)
    forms = [
        torch.randn(70, 33, 3, 3), torch.randn(300, 200).t(), torch.randn(64, 40, 3, 3), torch.randn(13),
        torch.randn(6, 5, 2, 2), torch.randn(40, 7, 3),
    ]  # fmt: skip
    forms[2] = forms[2].contiguous(memory_format=torch.channels_last)
    axes = [(0, 1), (1, 0), (2, 1), (3, 0), (4, 0), (4, 1), (5, 0)]
    weights = [w.to(CUDA, dtype).requires_grad_() for w in forms]
    return weights, MaskedAxes(
        tuple(o for o, _ in axes), tuple(a for _, a in axes), tuple(forms[o].shape[a] for o, a in axes)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_kernels_for_weights_do_what_operations_do(dtype: torch.dtype) -> None:
    assert kernels.serve(CUDA)
    weights, where = _weights(dtype)
    masks = (torch.rand(sum(where.lengths), device=CUDA) < 0.6).float().requires_grad_()
    given = [torch.randn_like(w) for w in weights]
    given[0] = given[0].contiguous(memory_format=torch.channels_last)  # laid out otherwise than its weight
    runs = []
    for function in (masked_weights, masked_weights, _by_operations):
        out = function(weights, masks, where)
        runs.append([*out, *torch.autograd.grad(out, [masks, *weights], given)])
    bound = {torch.float32: 1e-5, torch.float64: 1e-6}.get(dtype, 1e-2)  # sums of masks are float32
    for first, again, expected in zip(*runs, strict=True):
        assert torch.equal(first, again), "the same order of additions every time"
        assert relative(first, expected) <= bound


@pytest.mark.parametrize("channels", [48, 384, 1500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_for_layer_norm_do_what_operations_do(channels: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (3 + torch.randn(9, 67, channels, device=CUDA)).to(dtype).requires_grad_()
    weight, bias = (torch.rand(channels, device=CUDA, requires_grad=True) for _ in range(2))
    mask = (torch.rand(channels, device=CUDA) < 0.6).float().requires_grad_()
    given = torch.randn(9, 67, channels, device=CUDA)
    runs = []
    for _ in range(2):
        out = masked_layer_norm(x, mask, weight, bias, 1e-6, torch.float32)
        runs.append([out, *torch.autograd.grad(out, [x, mask, weight, bias], given)])
    out = by_operations(x.double(), mask, weight, bias, 1e-6)
    runs.append([out, *torch.autograd.grad(out, [x, mask, weight, bias], given.double())])
    for first, again, expected in zip(*runs, strict=True):
        assert torch.equal(first, again)
        assert relative(first, expected) <= (1e-2 if first.dtype is torch.bfloat16 else 2e-5)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.usefixtures("plain_float32")
def test_recomputation_meets_its_own_masks(use_reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self, recompute: bool) -> None:
            super().__init__()
            self.a, self.norm = nn.Linear(8, 32), nn.LayerNorm(32)
            self.b, self.c, self.recompute = nn.Linear(32, 32), nn.Linear(32, 3), recompute

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            def body(y: torch.Tensor) -> torch.Tensor:
                return self.b(F.layer_norm(self.norm(self.a(y)).relu(), (32,))).relu()

            return self.c(checkpoint(body, x, use_reentrant=use_reentrant) if self.recompute else body(x))

    x, found = torch.randn(4, 8, device=CUDA), []
    for recompute in (False, True):
        torch.manual_seed(0)
        gated = prunegate.wrap(Checkpointed(recompute).to(CUDA), x).train()
        gated.gates.start_at(0.5)
        inputs = [x.clone().requires_grad_(), (2 * x).requires_grad_()]
        sum(gated(one).square().sum() for one in inputs).backward()
        found.append([gated.gates.logits.grad, *(p.grad for p in gated.weight_parameters())])
    for a, b in zip(*found, strict=True):
        assert relative(a, b) <= 1e-5


@pytest.mark.usefixtures("plain_float32")
@pytest.mark.parametrize("name", ["resnet18", "test_vit"])
def test_compiled_equals_eager(name: str) -> None:
    model, x = made(name)
    gated = prunegate.wrap(model, x).train()
    gated.gates.start_at(0.7)
    state = copy.deepcopy(gated.state_dict())
    eager = gated(x)
    eager.square().mean().backward()
    gradient = gated.gates.logits.grad
    gated.load_state_dict(state)
    gated.gates.logits.grad = None
    found = torch.compile(gated, fullgraph=True)(x)
    found.square().mean().backward()
    assert relative(found, eager) <= 1e-5
    assert relative(gated.gates.logits.grad, gradient) <= 1e-2


def test_a_captured_step_draws_anew_in_each_replay() -> None:
    model, x = made("convolutions")
    gated = prunegate.wrap(model, x).train()
    gated.gates.start_at(0.5)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            gated.zero_grad(set_to_none=True)
            gated(x).square().mean().backward()
    torch.cuda.current_stream().wait_stream(side)
    gated.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = gated(x)
        out.square().mean().backward()
    seen = []
    for _ in range(4):
        graph.replay()
        seen.append(out.clone())
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(seen))
    torch.cuda.synchronize()


def test_refitting_and_statistics_on_the_gpu() -> None:
    model, x = made("test_vit")
    dense = copy.deepcopy(model)
    gated = prunegate.wrap(model, x)
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    data = torch.randn(64, 3, 160, 160, device=CUDA), torch.randint(10, (64,), device=CUDA)
    found = prunegate.recover(gated, lambda: iter([data]), dense, samples=32)
    assert found.layers > 0


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_recipes_run_and_go_on_bit_for_bit(precision: str, tmp_path: Path) -> None:
    from prunegate.recipe import load_recipe, run

    recipe = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
    changes = [f"stages.{stage}.epochs=1" for stage in ("dense", "gate", "finetune")]
    changes += ["data.train_limit=256", f"training.precision='{precision}'"]
    states: list[Any] = []
    for number in range(2):
        summary = run(load_recipe(recipe, changes), tmp_path / str(number))
        assert 0.99 <= summary.realised_macs / (0.5 * summary.dense_macs) <= 1.0
        loaded = prunegate.load(tmp_path / str(number) / "compact.safetensors")
        states.append(loaded.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_export_from_the_gpu(tmp_path: Path) -> None:
    model, x = made("resnet18")
    gated = prunegate.wrap(model, x)
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    result = prunegate.compact(gated)
    from prunegate.exporting import export_model
    from prunegate.groups import ExampleInputs

    export_model(result.model, ExampleInputs.of(x), tmp_path / "model.pt2", "pt2", dynamic_batch=False)
    assert (tmp_path / "model.pt2").is_file()
