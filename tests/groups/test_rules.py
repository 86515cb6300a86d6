"""The effects of single operations on channels, each in the smallest network that has them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunegate
from prunegate.builders import Builder
from prunegate.groups import ExampleInputs, Trace
from tests.conftest import random_masks


class Net(nn.Module):
    """Two or more layers and whatever stands between them."""

    def __init__(self, forward: Callable[..., torch.Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._forward = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward(self, x)


def conv(inputs: int, outputs: int, **kwargs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **kwargs)


IMAGE = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
ROW = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

# name: (network, input, {group: units})
CASES: dict[str, tuple[Net, torch.Tensor, dict[str, int]]] = {
    "chain": (Net(lambda m, x: m.b(m.a(x).relu()), a=conv(3, 8), b=conv(8, 4)), IMAGE, {"a": 8}),
    "activation that is not zero at zero": (
        Net(lambda m, x: m.b(torch.cos(m.a(x)) + 1), a=conv(3, 8), b=conv(8, 4)),
        IMAGE,
        {"a": 8},
    ),
    "addition": (
        Net(lambda m, x: m.c(m.a(x) + m.b(x)), a=conv(3, 8), b=conv(3, 8), c=conv(8, 4)),
        IMAGE,
        {"a": 8},
    ),
    "addition of the input": (Net(lambda m, x: m.b(x + m.a(x)), a=conv(3, 3), b=conv(3, 4)), IMAGE, {}),
    "depthwise": (
        Net(lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 8), b=conv(8, 8, groups=8), c=conv(8, 4)),
        IMAGE,
        {"a": 8},
    ),
    "depthwise with a multiplier": (
        Net(lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 8), b=conv(8, 16, groups=8), c=conv(16, 4)),
        IMAGE,
        {"a": 8},
    ),
    "few wide groups": (
        Net(lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 12), b=conv(12, 8, groups=2), c=conv(8, 4)),
        IMAGE,
        {"a": 6, "b": 4},
    ),
    "many narrow groups": (
        Net(lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 12), b=conv(12, 12, groups=6), c=conv(12, 4)),
        IMAGE,
        {"a": 6},
    ),
    "concatenation": (
        Net(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), a=conv(3, 5), b=conv(3, 7), c=conv(12, 4)),
        IMAGE,
        {"a": 5, "b": 7},
    ),
    "concatenation with the input": (
        Net(lambda m, x: m.c(torch.cat([m.a(x), x], 1)), a=conv(3, 5), c=conv(8, 4)),
        IMAGE,
        {"a": 5},
    ),
    "flatten": (
        Net(lambda m, x: m.b(m.a(x).flatten(1)), a=conv(3, 8), b=nn.Linear(8 * 36, 4)),
        IMAGE,
        {"a": 8},
    ),
    "equal chunks": (
        Net(lambda m, x: m.b(torch.mul(*m.a(x).chunk(2, 1))), a=conv(3, 8), b=conv(4, 4)),
        IMAGE,
        {"a": 4},
    ),
    "gated linear unit": (
        Net(lambda m, x: m.b(F.glu(m.a(x), 1)), a=conv(3, 8), b=conv(4, 4)),
        IMAGE,
        {"a": 4},
    ),
    "squeeze and excite": (
        Net(
            lambda m, x: m.c(m.a(x) * m.up(m.down(m.a(x).mean((2, 3), keepdim=True)).relu()).sigmoid()),
            a=conv(3, 8),
            down=nn.Conv2d(8, 3, 1),
            up=nn.Conv2d(3, 8, 1),
            c=conv(8, 4),
        ),
        IMAGE,
        {"a": 8, "down": 3},
    ),
    "transposed": (
        Net(lambda m, x: m.b(m.a(x)), a=nn.ConvTranspose2d(3, 8, 2, 2), b=nn.ConvTranspose2d(8, 4, 2, 2)),
        IMAGE,
        {"a": 8},
    ),
    "reused layer": (
        Net(lambda m, x: m.c(m.b(m.b(m.a(x)).relu())), a=conv(3, 8), b=conv(8, 8), c=conv(8, 4)),
        IMAGE,
        {"a": 8},
    ),
    "linear": (
        Net(lambda m, x: m.c(F.gelu(m.b(m.a(x)))), a=nn.Linear(5, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 2)),
        ROW,
        {"a": 8, "b": 6},
    ),
    "softmax over channels": (
        Net(lambda m, x: m.b(m.a(x).softmax(1)), a=nn.Linear(5, 8), b=nn.Linear(8, 2)),
        ROW,
        {"a": 8},
    ),
    "channel picked by position": (
        Net(lambda m, x: m.b(m.a(x)) + torch.ops.aten.slice(m.a(x), 1, 2, 3), a=nn.Linear(5, 8), b=nn.Linear(8, 2)),
        ROW,
        {"a": 7},
    ),
    "many-group normalisation": (
        Net(lambda m, x: m.b(m.n(m.a(x))), a=conv(3, 8), n=nn.GroupNorm(4, 8), b=conv(8, 4)),
        IMAGE,
        {"a": 4},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_channel_groups_are_found(case: tuple[Net, torch.Tensor, dict[str, int]]) -> None:
    net, x, expected = case
    analysis = Trace(net.double().eval(), ExampleInputs.of(x)).analysis()
    assert {group.name: group.num_units for group in analysis.groups} == expected


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("density", [0.7, 0.3])
def test_what_is_offered_compacts_without_loss(case: tuple[Net, torch.Tensor, dict[str, int]], density: float) -> None:
    net, x, expected = case
    net = net.double().eval()
    if not expected:
        with pytest.raises(prunegate.NothingToPruneError):
            prunegate.wrap(net, x)
        return
    if case is CASES["channel picked by position"]:
        # The position is handed to an operation that no function mode sees through: shapes fit, values do not.
        with pytest.raises(prunegate.NothingToPruneError, match=r"a: 7 channels.*computes something else"):
            prunegate.wrap(net, x, backend="module")
    gated = prunegate.wrap(net, x)
    gated.set_masks(random_masks(gated.groups, density, seed=1))
    result = prunegate.compact(gated)
    assert result.certificate.float64.max_rel <= 1e-9
    assert result.costs["params"]["compact"] == sum(p.numel() for p in result.model.parameters())


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda m, x: m.b(m.a(x).cumprod(1)), "cumprod is taken over these channels"),
        (lambda m, x: m.b(m.a(x).roll(1, 1)), "rolled along the channels"),
        (lambda m, x: m.b(m.a(x)[:, torch.arange(8)]), "picked by an index tensor"),
        (lambda m, x: m.b(m.a(x) * torch.cat([x, x[:, :3]], 1)), "meets channels that cannot be removed"),
        (lambda m, x: m.a(x), "part of the model's output"),
        (lambda m, x: m.b(torch.linalg.qr(m.a(x))[0] @ torch.ones(2, 8).double()), "no rule says"),
    ],
)
def test_refusals_say_what_stands_in_the_way(forward: Callable[..., torch.Tensor], reason: str) -> None:
    net = Net(forward, a=nn.Linear(5, 8), b=nn.Linear(8, 2)).double().eval()
    pinned = Trace(net, ExampleInputs.of(ROW)).analysis().pinned
    found = next(p for p in pinned if p.name == "a")
    assert reason in found.reason
    if "output" not in reason:
        assert "tests/groups/test_rules.py:" in found.reason


def test_tracing_needs_no_weights_and_computes_nothing() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    analysis = Trace(net, ExampleInputs.of(torch.empty(1, 3, 8, 8, device="meta"))).analysis()
    assert [group.num_units for group in analysis.groups] == [8]


def test_wrapping_takes_parameters_on_meta_beside_real_buffers() -> None:
    skeleton = Builder.parse("timm/test_resnet").skeleton()
    assert skeleton.fc.weight.is_meta
    assert not skeleton.bn1.running_mean.is_meta
    assert prunegate.wrap(skeleton, torch.zeros(1, 3, 64, 64)).analysis.num_units > 100


def test_heads_that_only_training_runs_are_honoured() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head, self.aux = nn.Linear(5, 8), nn.Linear(8, 2), nn.Linear(8, 2)
            self.norm = nn.BatchNorm1d(2)  # in training it refuses a single sample, such as the one traced here

        def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
            x = self.stem(x)
            return (self.head(x), self.norm(self.aux(x))) if self.training else self.head(x)

    gated = prunegate.wrap(Auxiliary().double().eval(), ROW[:1])
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    compact = prunegate.compact(gated).model.train()
    for ours, theirs in zip(compact(ROW), gated.train()(ROW), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_wrong_channels_behind_a_zero_scale_are_found() -> None:
    """Fresh models scale residual branches by zero; the dry run must not be fooled by that."""
    net = Net(
        lambda m, x: m.c(x) + m.s(m.b(torch.ops.aten.slice(m.a(x), 1, 2, 6))),
        a=conv(3, 8),
        b=conv(4, 4),
        s=nn.BatchNorm2d(4),
        c=conv(3, 4),
    )
    nn.init.zeros_(net.s.weight)
    with pytest.raises(prunegate.NothingToPruneError, match="cutting it breaks the model"):
        prunegate.wrap(net.double().eval(), IMAGE, backend="module")
