"""Gates in training loops of other people: recomputation, copies, averages, threads, pickles, compilers."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import prunegate
from tests.conftest import SmallNet


def gradients(gated: prunegate.GatedModel, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """Of logits and weights, after one backward pass through as many forwards as there are inputs; noise of seed 3."""
    gated.zero_grad()
    gated.train()
    gated.gates.start_at(0.5)
    gated.gates.generator.manual_seed(3)
    given = [x.clone().requires_grad_() for x in inputs]
    sum(gated(x).square().sum() for x in given).backward()
    found = [gated.gates.logits.grad, *(p.grad for p in gated.weight_parameters()), *(x.grad for x in given)]
    return [gradient.clone() for gradient in found if gradient is not None]


class Body(nn.Module):
    """Masked weights, a masked norm as a module and as a function, attention, and a product of two activations.

    ``how`` runs a function of one tensor: at once, or through checkpointing.
    """

    def __init__(self, form: str, how: Callable[..., Any]) -> None:
        super().__init__()
        self.form, self.how = form, how
        self.embed, self.norm = nn.Linear(6, 16), nn.LayerNorm(16)
        self.qkv, self.out, self.head = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 3)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        x = F.layer_norm(x.relu(), (x.shape[-1],))
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out(y.reshape(b, n, -1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embed(x))
        if self.form == "method":
            x = x + self.how(self.attend, x)
        elif self.form == "closure":
            x = x + self.how(lambda y: self.attend(F.layer_norm(y, (y.shape[-1],))), x)
        elif self.form == "function":
            x = x + self.how(partial(_attend_with, self), x)
        elif self.form == "module":
            x = x + self.how(self.norm, x)
        elif self.form == "loop":
            for _ in range(3):
                x = x + self.how(lambda y: F.layer_norm(self.out(y), (y.shape[-1],)), x)
        elif self.form == "nested":
            x = x + self.how(lambda y: y + self.how(self.attend, self.norm(y)), x)
        return self.head(x).mean(1)


def _attend_with(module: Body, x: torch.Tensor) -> torch.Tensor:
    return module.attend(x)


def _at_once(function: Callable[..., Any], x: torch.Tensor) -> Any:
    return function(x)


def _again(function: Callable[..., Any], x: torch.Tensor) -> Any:
    return checkpoint(function, x, use_reentrant=False)


def _again_in_backward(function: Callable[..., Any], x: torch.Tensor) -> Any:
    return checkpoint(function, x, use_reentrant=True)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # when wrap runs the model
@pytest.mark.parametrize("how", [_again, _again_in_backward])
@pytest.mark.parametrize("form", ["method", "closure", "function", "module", "loop", "nested"])
@pytest.mark.parametrize("forwards", [1, 2])
def test_recomputation_meets_the_masks_of_its_own_forward(form: str, how: Callable[..., Any], forwards: int) -> None:
    x, found = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0)).double(), []
    for one in (_at_once, how):
        torch.manual_seed(0)
        gated = prunegate.wrap(Body(form, one).double(), x)
        assert gated.analysis.masked_calls
        found.append(gradients(gated, *[(n + 1) * x for n in range(forwards)]))
    for first, second in zip(*found, strict=True):
        loose = first.dtype is torch.float32  # logits, whose gradient comes in parts
        torch.testing.assert_close(first, second, rtol=1e-5 if loose else 1e-9, atol=1e-6 if loose else 1e-12)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint_sequential_and_custom_recomputation(use_reentrant: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 6).double()

    class Stages(nn.Module):
        def __init__(self, recompute: bool) -> None:
            super().__init__()
            self.recompute = recompute
            self.layers = nn.Sequential(*[m for _ in range(3) for m in (nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU())])
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            if self.recompute:
                x = checkpoint_sequential(self.layers, 3, x, use_reentrant=use_reentrant)
            else:
                x = self.layers(x)
            return self.last(x)

    found = []
    for recompute in (False, True):
        torch.manual_seed(1)
        found.append(gradients(prunegate.wrap(Stages(recompute).double(), x), x, -x))
    for first, second in zip(*found, strict=True):
        loose = first.dtype is torch.float32  # logits, whose gradient comes in parts
        torch.testing.assert_close(first, second, rtol=1e-5 if loose else 1e-9, atol=1e-6 if loose else 1e-12)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad", "ignore::FutureWarning")
def test_switches_of_timm_and_transformers() -> None:
    x, found = torch.randn(2, 3, 160, 160), []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = timm.create_model("test_vit", num_classes=5)
        model.set_grad_checkpointing(recompute)
        found.append(gradients(prunegate.wrap(model, x), x))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)

    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=30, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes)
    tokens, found = torch.randint(30, (2, 7)), []
    for reentrant in (None, False, True):
        torch.manual_seed(0)
        model = transformers.BertModel(config).train()
        if reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        gated = prunegate.wrap(model, {"input_ids": tokens}).train()
        gated.gates.start_at(0.5)
        gated(input_ids=tokens).last_hidden_state.square().sum().backward()
        found.append(gated.gates.logits.grad)
    assert found[0].abs().sum() > 0
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("form", ["method", "nested"])
def test_a_whole_gated_model_that_is_run_again_draws_what_it_drew(form: str, use_reentrant: bool) -> None:
    x, found = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0)).double(), []
    for recompute in (False, True):
        torch.manual_seed(0)
        gated = prunegate.wrap(Body(form, _again).double(), x).train()
        gated.gates.start_at(0.5)
        given = [x.clone().requires_grad_(), (2 * x).requires_grad_()]
        outs = [checkpoint(gated, one, use_reentrant=use_reentrant) if recompute else gated(one) for one in given]
        state = gated.gates.generator.get_state()
        sum(out.square().sum() for out in outs).backward()
        assert torch.equal(gated.gates.generator.get_state(), state)
        found.append([gated.gates.logits.grad, *(p.grad for p in gated.weight_parameters())])
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


def small(seed: int = 0) -> tuple[prunegate.GatedModel, torch.Tensor]:
    torch.manual_seed(seed)
    x = torch.randn(3, 3, 7, 7)
    return prunegate.wrap(SmallNet(), x).train(), x


def test_threads_run_one_gated_model_and_several() -> None:
    gated, x = small()
    others = [small(seed)[0].eval() for seed in range(3)]
    encoder = nn.Sequential(
        nn.Linear(4, 8), nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), nn.Linear(8, 2)
    ).eval()
    with_fast_path = prunegate.wrap(encoder, torch.randn(2, 5, 4)).eval()
    given = torch.randn(2, 5, 4)
    with torch.no_grad():
        gated.eval()
        expected = [gated(x), *(other(x) for other in others), with_fast_path(given)]
    before = torch.backends.mha.get_fastpath_enabled()
    wrong: list[str] = []

    def work(number: int) -> None:
        with torch.no_grad():
            for _ in range(20):
                found = [gated(x), *(other(x) for other in others), with_fast_path(given)]
                # Where another thread wraps, attention may round otherwise.
                if not all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True)):
                    wrong.append(f"thread {number}")
            prunegate.wrap(SmallNet(), x)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert torch.backends.mha.get_fastpath_enabled() == before
    assert torch.backends.cuda.flash_sdp_enabled()


def test_threads_train_with_masks_of_their_own() -> None:
    """Each thread's gradients are those of its own draw: forwards of others in between change nothing."""
    gated, x = small()
    gated.gates.start_at(0.5)
    barrier, found = threading.Barrier(2), {}

    def work(number: int) -> None:
        mask = torch.zeros_like(gated.gates.logits)
        mask[number::2] = 1.0
        out = gated.sites.run(gated.model.eval(), mask, (x,), {})
        barrier.wait()
        found[number] = torch.autograd.grad(out.sum(), gated.model.head.weight)[0]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        mask = torch.zeros_like(gated.gates.logits)
        mask[number::2] = 1.0
        out = gated.sites.run(gated.model, mask, (x,), {})
        torch.testing.assert_close(found[number], torch.autograd.grad(out.sum(), gated.model.head.weight)[0])


AVERAGES: dict[str, Callable[[nn.Module], Any]] = {
    "AveragedModel": AveragedModel,
    "AveragedModel with buffers": partial(AveragedModel, use_buffers=True),
    "AveragedModel with buffers, moving": partial(
        AveragedModel, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(0.5)
    ),
    "ModelEmaV2": lambda model: timm.utils.ModelEmaV2(model, decay=0.5),
    "ModelEmaV3": lambda model: timm.utils.ModelEmaV3(model, decay=0.5),
}


@pytest.mark.parametrize("kind", AVERAGES)
def test_averages_follow_through_freezing(kind: str) -> None:
    gated, x = small()
    mean = AVERAGES[kind](gated)
    update = mean.update_parameters if isinstance(mean, AveragedModel) else mean.update
    steps = prunegate.GateSteps(gated, budget=0.5, steps=6)
    optimizer = torch.optim.SGD(gated.weight_parameters(), 1e-2)
    for _ in range(6):
        optimizer.zero_grad()
        gated(x).square().sum().backward()
        steps.step()
        optimizer.step()
        update(gated)
    assert steps.are_frozen
    averaged = mean.module
    assert averaged.gates.are_fixed
    assert torch.equal(averaged.gates.hard_mask(), gated.gates.hard_mask())
    assert prunegate.compact(averaged).certificate.float64.max_rel <= 1e-9


def test_a_state_dict_holds_tensors_under_the_same_keys_at_all_times() -> None:
    gated, x = small()
    keys = list(gated.state_dict())
    steps = prunegate.GateSteps(gated, budget=0.5, steps=4)

    def check() -> None:
        state = gated.state_dict()
        assert list(state) == keys
        assert all(isinstance(value, torch.Tensor) for value in state.values())
        torch.load(_saved(state), weights_only=True)

    check()
    for _ in range(4):
        gated(x).sum().backward()
        steps.step()
        check()
    steps.finish()
    check()
    gated.gates.close_removed()
    check()
    assert {key.removeprefix("model.") for key in keys if key.startswith("model.")} == set(SmallNet().state_dict())


def _saved(value: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("net", [SmallNet, lambda: nn.Sequential(nn.Linear(7, 8), nn.LayerNorm(8), nn.Linear(8, 3))])
def test_copies_in_the_middle_of_training(way: str, net: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 3, 7, 7)
    gated = prunegate.wrap(net(), x).train()
    gated.tau = 0.3
    gated.gates.estimator = "reinmax"
    out = gated(x)
    if way == "deepcopy":
        twin = copy.deepcopy(gated)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(gated))
    else:
        twin = torch.load(_saved(gated), weights_only=False)
    out.sum().backward()
    assert (twin.tau, twin.gates.estimator) == (0.3, "reinmax")
    assert torch.equal(gated(x), twin(x))
    twin.harden(prunegate.Budget("macs", 0.5))
    assert not gated.gates.are_fixed
    assert prunegate.compact(twin).certificate.float64.max_rel <= 1e-9


def test_modules_are_reached_by_every_road() -> None:
    """Lists that are no ModuleList, bound methods, closures, partials and hooks lead to masked weights too."""

    class Roads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 16)
            self.d, self.e = nn.Linear(16, 16), nn.Linear(16, 3)
            self.listed = [self.b]
            self.bound = self._through_c
            self.closure = lambda x: self.d(x)
            self.partial = partial(_call, self.e)
            self.weights = {"e": self.e.weight}
            self.a.register_forward_hook(lambda _module, _args, out: out + 0.1 * self.b(out))

        def _through_c(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(x)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.listed[0](self.a(x)).relu()
            x = self.closure(self.bound(x).relu()).relu()
            return self.partial(x) + 0.1 * F.linear(x, self.weights["e"])

    torch.manual_seed(0)
    x = torch.randn(4, 6, dtype=torch.float64)
    gated = prunegate.wrap(Roads().double(), x)
    assert {"a", "c", "d"} <= {group.name for group in gated.groups}
    gated.set_masks({group.name: torch.arange(group.num_units) % 3 > 0 for group in gated.groups})
    compact = prunegate.compact(gated).model
    found = []
    for model in (gated.train(), compact.train()):
        given = x.clone().requires_grad_()
        model(given).square().sum().backward()
        found.append(given.grad)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def _call(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return module(x)


def test_what_a_forward_notes_on_its_modules_stays() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.calls = nn.Linear(4, 8), nn.Linear(8, 2), 0
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.seen = self.seen + 1
            self.last = x
            return self.b(self.a(x).relu())

    gated = prunegate.wrap(Counting(), torch.randn(2, 4)).train()
    model, before = gated.model, gated.model.calls
    for number in range(3):
        x = torch.randn(2, 4)
        gated(x)
        assert model.calls == before + number + 1
        assert model.last is x
    assert float(model.seen) >= 3
    assert type(model) is Counting


@pytest.mark.parametrize("name", ["convolutions", "attention"])
def test_compiled_without_a_graph_break_it_equals_eager(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 3, 7, 7) if name == "convolutions" else torch.randn(3, 5, 6)
    net = SmallNet() if name == "convolutions" else Body("method", _at_once)
    gated = prunegate.wrap(net, x).train()
    gated.gates.start_at(0.5)
    state, found = copy.deepcopy(gated.state_dict()), []
    for model in (gated, torch.compile(gated, fullgraph=True, backend="aot_eager")):
        gated.load_state_dict(state)
        gated.zero_grad()
        outs = [model(x) for _ in range(2)]
        sum(out.square().sum() for out in outs).backward()
        found.append([*outs, gated.gates.logits.grad.clone(), *(p.grad.clone() for p in gated.weight_parameters())])
    assert not torch.equal(found[0][0], found[0][1]), "two draws"
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


def test_unwrap_gives_the_dense_model_back() -> None:
    torch.manual_seed(0)
    net = Body("method", _at_once)
    types = {name: type(module) for name, module in net.named_modules()}
    gated = prunegate.wrap(net, torch.randn(2, 5, 6))
    dense = gated.unwrap()
    assert {name: type(module) for name, module in dense.named_modules()} == types
    assert dict(dense.named_buffers()) == {}


def test_a_module_under_two_names_has_one_gate(tmp_path: Any) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.c = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)
            self.again, self.inner = self.norm, nn.Sequential(self.a, self.norm)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.again(self.inner(x)))

    torch.manual_seed(0)
    x = torch.randn(3, 4)
    gated = prunegate.wrap(Twice(), x)
    gated.harden(prunegate.Budget("macs", 0.5))
    result = prunegate.compact(gated)
    assert result.model.norm is result.model.again is result.model.inner[1]
    assert type(result.model.norm) is nn.LayerNorm
    result.save(tmp_path / "model.safetensors")
    loaded = prunegate.load(tmp_path / "model.safetensors", model=Twice())
    assert torch.equal(loaded.eval()(x), result.model.eval()(x))


def test_gradient_penalties_go_through_masked_weights() -> None:
    """Gradients of gradients, as Wasserstein GANs and meta-learning ask for."""
    torch.manual_seed(0)
    x = torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)
    gated = prunegate.wrap(Body("loop", _at_once).double(), x.detach())
    gated.set_masks({group.name: torch.arange(group.num_units) % 3 > 0 for group in gated.groups})
    compact = prunegate.compact(gated).model
    found = []
    for model in (gated.train(), compact.train()):
        (first,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        first.square().sum().backward()
        found.append((first.detach(), x.grad.clone()))
        x.grad = None
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_modules_are_used_in_every_way() -> None:
    """Sliced lists, and copies made in the forward."""

    class Ways(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.d = nn.Linear(6, 8), nn.Linear(8, 3)
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 8)) for _ in range(3))
            self.row = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            for block in self.blocks[:2]:
                x = x + block(x)
            x = x + copy.copy(self.blocks[2])(x)
            x = self.row[2](self.row[:2](x))
            with torch.no_grad():
                assert copy.deepcopy(self.row)(x).shape == x.shape
            return self.d(x)

    torch.manual_seed(0)
    x = torch.randn(4, 6, dtype=torch.float64)
    gated = prunegate.wrap(Ways().double(), x)
    assert {f"blocks.{n}.0" for n in range(3)} <= {group.name for group in gated.groups}
    gated.set_masks({group.name: torch.arange(group.num_units) % 3 > 0 for group in gated.groups})
    compact = prunegate.compact(gated).model
    torch.testing.assert_close(gated.train()(x), compact.train()(x), rtol=1e-9, atol=1e-12)


def test_inference_mode_and_transforms_of_functions() -> None:
    gated, x = small()
    with torch.inference_mode():
        assert gated(x).shape == gated(x).shape
    gated.set_masks({group.name: torch.arange(group.num_units) % 2 == 0 for group in gated.groups})
    state = gated.gates.generator.get_state()
    for training in (True, False):
        gated.train(training)
        gated.model.eval()
        expected = gated(x)
        with torch.inference_mode():
            torch.testing.assert_close(gated(x), expected.detach())
        each = torch.func.vmap(lambda one: gated(one[None])[0])(x)
        torch.testing.assert_close(each, expected, rtol=1e-4, atol=1e-5)
        weights = dict(gated.named_parameters())
        found = torch.func.grad(lambda p: torch.func.functional_call(gated, p, (x,)).sum())(weights)
        plain = torch.autograd.grad(expected.sum(), list(gated.weight_parameters()))
        for name, gradient in zip((n for n, _ in gated.model.named_parameters()), plain, strict=True):
            torch.testing.assert_close(found[f"model.{name}"], gradient, rtol=1e-4, atol=1e-5)
    assert torch.equal(gated.gates.generator.get_state(), state), "fixed masks draw nothing"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_tracing_a_gated_model() -> None:
    gated, x = small()
    gated.eval().set_masks({group.name: torch.arange(group.num_units) % 2 == 0 for group in gated.groups})
    traced = torch.jit.trace(gated, x)
    torch.testing.assert_close(traced(2 * x), gated(2 * x))


def test_a_gated_model_that_was_emptied_is_filled_by_a_state_dict() -> None:
    gated, x = small()
    gated.tau = 0.3
    gated.harden(prunegate.Budget("macs", 0.5))
    state, expected = copy.deepcopy(gated.state_dict()), gated.eval()(x)
    emptied = copy.deepcopy(gated).to("meta").to_empty(device="cpu")
    emptied.load_state_dict(state)
    assert torch.equal(emptied(x), expected)
    assigned = copy.deepcopy(gated).to("meta")
    assigned.load_state_dict(state, assign=True)
    assert torch.equal(assigned(x), expected)
    assert emptied.tau == assigned.tau == 0.3
    emptied.release_masks()
    assigned.release_masks()
    gated.release_masks()
    assert torch.equal(emptied.train()(x), gated.train()(x))
    assert assigned.train()(x).isfinite().all()


class NormThenInPlace(nn.Module):
    """A norm over channels beside positions, and an activation that writes into what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 16, 3), nn.LayerNorm(16), nn.Conv2d(16, 4, 3)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.b(self.act(y))


def test_an_activation_writes_into_what_a_masked_norm_gives() -> None:
    """RuntimeError: a view made in a custom function is modified in place."""
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    gated = prunegate.wrap(NormThenInPlace().double(), x).train()
    gated(x).square().sum().backward()
    assert gated.gates.logits.grad.abs().sum() > 0
    gated.set_masks({g.name: torch.arange(g.num_units) % 2 == 0 for g in gated.groups})
    assert prunegate.compact(gated).certificate.float64.max_rel <= 1e-9  # type: ignore[union-attr]
