"""Statistics that a single unit does not have: `harden` leaves as many units as `compact` delivers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunegate
from prunegate.errors import MaskError

WIDTH = 12
Between = Callable[[torch.Tensor], torch.Tensor]


class Net(nn.Module):
    """Convolutions, or linear layers, with a statistic over the channels between them."""

    def __init__(self, between: Between, images: bool) -> None:
        super().__init__()
        self.a: nn.Module = nn.Conv2d(3, WIDTH, 3) if images else nn.Linear(5, WIDTH)
        self.b: nn.Module = nn.Conv2d(WIDTH, 4, 1) if images else nn.Linear(WIDTH, 4)
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.b(self.between(self.a(x)))
        return y


# name: (operation, whether on images, units that have to stay)
STATISTICS: dict[str, tuple[Between, bool, int]] = {
    "layer norm": (lambda h: F.layer_norm(h, h.shape[1:]), False, 1),
    "root mean square": (lambda h: F.rms_norm(h, h.shape[1:]), False, 1),
    "group norm": (lambda h: F.group_norm(h, 1), True, 1),
    "group norm of a single position": (lambda h: F.group_norm(h.mean((2, 3), keepdim=True), 1) + h, True, 2),
    "standard deviation": (lambda h: h / (h.std(1, keepdim=True) + 0.1), False, 2),
    "variance": (lambda h: h / (h.var(1, keepdim=True) + 0.1), True, 2),
    "variance and mean": (lambda h: h * torch.var_mean(h, 1, keepdim=True)[0], False, 2),
    "a larger correction": (lambda h: h * h.var(1, correction=3, keepdim=True), False, 4),
    "biased variance": (lambda h: h / (h.var(1, unbiased=False, keepdim=True) + 0.1), False, 1),
    "variance over positions too": (lambda h: h / h.std((1, 2, 3), keepdim=True), True, 1),
    "normalised": (lambda h: F.normalize(h, dim=1), False, 1),
    "softmax": (lambda h: h.softmax(1), False, 1),
}


def _gated(name: str) -> tuple[prunegate.GatedModel, torch.Tensor]:
    between, images, _ = STATISTICS[name]
    torch.manual_seed(0)
    x = torch.randn(3, 3, 6, 6) if images else torch.randn(3, 5)
    return prunegate.wrap(Net(between, images).double().eval(), x.double()), x.double()


@pytest.mark.parametrize("round_to", [1, 3])
@pytest.mark.parametrize("name", STATISTICS)
def test_the_fewest_units_compact_and_agree(name: str, round_to: int) -> None:
    gated, x = _gated(name)
    gated.round_to = round_to
    gated.harden(("macs", gated.least_cost("macs")))
    least = -(-STATISTICS[name][2] // round_to) * round_to
    assert [int(mask.sum()) for mask in gated.masks().values()] == [least]
    compact = prunegate.compact(gated).model
    for training in (False, True):
        for inputs in (x, x[:1]):
            a, b = gated.train(training)(inputs), compact.train(training)(inputs)
            assert torch.isfinite(a).all()
            torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["standard deviation", "a larger correction"])
def test_no_mask_that_is_drawn_has_too_few_units(name: str) -> None:
    gated, x = _gated(name)
    with torch.no_grad():
        gated.gates.logits.fill_(-4.0)
    least = STATISTICS[name][2]
    for _ in range(20):
        gated.train()(x).square().sum().backward()
        assert int(gated.gates.sample().sum()) >= least
    assert torch.isfinite(gated.gates.logits.grad).all()
    assert [int(mask.sum()) for mask in gated.masks().values()] == [least]


def test_a_mask_with_too_few_units_is_refused() -> None:
    gated, _ = _gated("standard deviation")
    with pytest.raises(MaskError, match=r"keeps 1 unit.*expected at least 2"):
        gated.set_masks({"a": torch.arange(WIDTH) == 0})


def test_several_groups_have_the_entries_together() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 4), nn.Linear(5, 8), nn.Linear(12, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.cat([self.a(x), self.b(x)], 1)
            y: torch.Tensor = self.c(h * h.var(1, correction=2, keepdim=True))
            return y

    gated = prunegate.wrap(Joined().double(), torch.randn(3, 5).double())
    assert {group.name: group.least for group in gated.groups} == {"a": 1, "b": 2}
    gated.harden(("macs", gated.least_cost("macs")))
    prunegate.compact(gated)
