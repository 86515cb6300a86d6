"""Masked weights, computed all at once: values, gradients, precisions, and repeated passes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import prunegate
from prunegate.gates.masked_norm import by_operations, masked_layer_norm
from prunegate.gates.masked_query import _by_operations as _plain_query
from prunegate.gates.masked_query import masked_query
from prunegate.gates.masking import MaskedAxes, _by_operations, masked_weights
from tests.conftest import SmallNet


def some_weights(dtype: torch.dtype = torch.float64) -> tuple[list[torch.Tensor], torch.Tensor, MaskedAxes]:
    torch.manual_seed(0)
    forms = [torch.randn(7, 5, 3, 3), torch.randn(6, 9).t(), torch.randn(11), torch.randn(4, 5, 2, 2)]
    axes = [(0, 1), (1, 0), (2, 0), (3, 0), (3, 1)]
    lengths = [forms[owner].shape[axis] for owner, axis in axes]
    where = MaskedAxes(tuple(o for o, _ in axes), tuple(a for _, a in axes), tuple(lengths))
    masks = (torch.rand(sum(lengths)) < 0.6).to(dtype).requires_grad_()
    return [w.to(dtype).requires_grad_() for w in forms], masks, where


def test_one_operation_does_what_many_do() -> None:
    weights, masks, where = some_weights()
    given = [torch.randn_like(w) for w in weights]
    runs = [function(weights, masks, where) for function in (masked_weights, _by_operations)]
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)
    gradients = [torch.autograd.grad(out, [masks, *weights], given) for out in runs]
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


def test_gradients_of_gradients() -> None:
    weights, masks, where = some_weights()
    assert torch.autograd.gradgradcheck(lambda *w: tuple(masked_weights(w, masks, where)), weights)
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    weight, mask = torch.rand(8, dtype=torch.float64, requires_grad=True), (torch.arange(8) % 3 > 0).double()

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return masked_layer_norm(x, mask, weight, None, 1e-5, torch.float64)

    assert torch.autograd.gradcheck(norm, (x, weight))
    assert torch.autograd.gradgradcheck(norm, (x, weight))


def test_a_backward_pass_in_parts_adds_up_to_one_in_one_piece() -> None:
    """As checkpointing with recomputation in the backward pass goes: once for each part, nothing freed between."""
    weights, masks, where = some_weights()
    given = [torch.randn_like(w) for w in weights]
    whole = torch.autograd.grad(masked_weights(weights, masks, where), masks, given)[0]
    out = masked_weights(weights, masks, where)
    parts = [torch.autograd.grad(one, masks, gradient)[0] for one, gradient in zip(out, given, strict=True)]
    torch.testing.assert_close(sum(parts), whole)


def test_weights_changed_before_the_backward_pass_are_noticed() -> None:
    weights, masks, where = some_weights()
    out = masked_weights(weights, masks, where)
    with torch.no_grad():
        weights[1].mul_(2.0)
    with pytest.raises(RuntimeError, match=r"changed in place.*Step the optimiser after loss.backward"):
        out[0].sum().backward()


def test_frozen_weights_get_no_gradient() -> None:
    weights, masks, where = some_weights()
    weights[0].requires_grad_(False)
    sum(out.sum() for out in masked_weights(weights, masks, where)).backward()
    assert weights[0].grad is None
    assert masks.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layer_norm_over_kept_channels(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (2 + torch.randn(5, 400, 12, dtype=dtype)).requires_grad_()
    weight, bias = (torch.rand(12, dtype=dtype, requires_grad=True) for _ in range(2))
    mask = (torch.arange(12) % 3 > 0).to(dtype).requires_grad_()
    given = torch.randn_like(x)
    fused, plain = masked_layer_norm(x, mask, weight, bias, 1e-5, dtype), by_operations(x, mask, weight, bias, 1e-5)
    torch.testing.assert_close(fused, plain)
    kept = mask.bool()
    torch.testing.assert_close(fused[..., kept], F.layer_norm(x[..., kept], (8,), weight[kept], bias[kept]))
    for first, second in zip(
        *(torch.autograd.grad(out, [x, mask, weight, bias], given) for out in (fused, plain)), strict=True
    ):
        torch.testing.assert_close(first, second, rtol=1e-4 if dtype is torch.float32 else 1e-9, atol=1e-4)


@pytest.mark.parametrize("scales", [True, False])
@pytest.mark.parametrize("shape", [(8,), (3, 1, 8)])
def test_queries_without_places_of_their_heads(shape: tuple[int, ...], scales: bool) -> None:
    torch.manual_seed(0)
    query = torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    mask = (torch.rand(shape) < 0.6).double()
    mask[..., 0] = 1.0
    mask.requires_grad_()
    out = masked_query(query, mask, torch.float64, scales)
    plain = _plain_query(query, mask, torch.float64, scales)
    torch.testing.assert_close(out, plain)
    given = torch.randn_like(out)
    for first, second in zip(*(torch.autograd.grad(one, [query, mask], given) for one in (out, plain)), strict=True):
        torch.testing.assert_close(first, second)
    assert torch.autograd.gradgradcheck(lambda q: masked_query(q, mask.detach(), torch.float64, scales), query)


class Mixed(nn.Module):
    """Layers under autocast, one of them where it is off, and a weight that is read beside its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.seen: list[torch.dtype] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.b(self.a(x).relu()).relu()
        with torch.autocast("cpu", enabled=False):
            y = self.c(y.float()).relu()
        self.seen.append(self.d.weight.dtype)
        return self.d(y) + self.d.weight.square().sum(1)


def test_autocast_gets_narrow_weights_and_all_others_their_own() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    gated = prunegate.wrap(Mixed(), x).train()
    gated.set_masks({group.name: torch.arange(group.num_units) % 3 > 0 for group in gated.groups})
    compact = prunegate.compact(gated).model.train()
    gated.model.seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        first, second = gated(x), compact(x)
    assert first.dtype == second.dtype
    # The same products of the same bfloat16 numbers; only the order of additions can differ.
    torch.testing.assert_close(first, second, rtol=2e-2, atol=2e-2)
    assert gated.model.seen == [torch.float32]
    first.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in gated.weight_parameters())


class Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


def added_operations(depth: int) -> int:
    """What gates add to a training step of a plain network of so many convolutions."""
    torch.manual_seed(0)
    layers = [layer for _ in range(depth) for layer in (nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())]
    net = nn.Sequential(nn.Conv2d(3, 4, 1), *layers, nn.Conv2d(4, 2, 1)).train()
    x = torch.randn(2, 3, 5, 5)
    counts = []
    for model in (copy.deepcopy(net), prunegate.wrap(net, x).train()):
        steps = prunegate.GateSteps(model, 0.5, steps=9) if isinstance(model, prunegate.GatedModel) else None
        weights = model.weight_parameters() if isinstance(model, prunegate.GatedModel) else model.parameters()
        optimizer = torch.optim.SGD(list(weights), 1e-3, foreach=True)
        for counted in (False, True):
            with Count() as count:
                optimizer.zero_grad()
                model(x).square().mean().backward()
                if steps is not None:
                    steps.step()
                optimizer.step()
            if counted:
                counts.append(count.count)
    return counts[1] - counts[0]


def test_operations_that_gates_add_do_not_grow_with_the_sites() -> None:
    few, many = added_operations(3), added_operations(24)
    assert few == many
    assert few < 200


def test_the_model_itself_holds_nothing_of_a_forward() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 3, 7, 7)
    gated = prunegate.wrap(SmallNet(), x).train()
    before = {name: (type(m), set(vars(m))) for name, m in gated.model.named_modules()}
    out = gated(x)
    assert {name: (type(m), set(vars(m))) for name, m in gated.model.named_modules()} == before
    assert all(isinstance(p, nn.Parameter) for p in gated.model.parameters())
    assert set(gated.model.state_dict()) == set(SmallNet().state_dict())
    out.sum().backward()
