"""Models whose numbers of rows depend on values, and modules that write what they make into their arguments."""

from __future__ import annotations

import torch
from torch import nn

import prunegate
from tests.wrapping.exactness import assert_exact, noise


class Matching(nn.Module):
    """Writes into a dict, returns nothing, and derives a scale from the number of channels."""

    def forward(self, x: torch.Tensor, found: dict[str, torch.Tensor]) -> None:
        x = x / x.shape[-1] ** 0.5
        found["weights"] = (x @ x.transpose(1, 2)).softmax(-1)


class Matched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.matching = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 8)), Matching()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: dict[str, torch.Tensor] = {}
        self.matching(self.features(x), found)
        return found["weights"]


def test_a_module_that_returns_nothing_keeps_the_scale_of_the_dense_model() -> None:
    gated = assert_exact(Matched(), noise(2, 6, 5), (noise(3, 9, 5),))
    assert not gated.pinned


class Picked(nn.Module):
    """Runs attention heads on the rows that a score admits: the more of its channels are kept, the fewer."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.total = nn.Linear(1, 8), nn.Linear(8, 1)
        self.q, self.o = nn.Linear(1, 32), nn.Linear(32, 3)
        with torch.no_grad():  # each channel of the score adds 1
            for layer, weight, bias in ((self.score, 0.0, 1.0), (self.total, 1.0, 0.0)):
                layer.weight.fill_(weight)
                layer.bias.fill_(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x[x[:, 0] > self.total(self.score(x))[:, 0]]
        y = self.q(rows).view(rows.shape[0], 4, 8)
        return self.o((y * y.softmax(1)).reshape(rows.shape[0], 32))


def test_rows_may_become_as_many_as_heads_were() -> None:
    x = torch.tensor([[0.0], [1.0], [4.5], [6.5], [8.5], [9.5]], dtype=torch.float64)
    gated = prunegate.wrap(Picked().double().eval(), x, attention="heads")
    masks = {group.name: torch.ones(group.num_units, dtype=torch.bool) for group in gated.groups}
    assert masks["score"].shape == (8,)
    masks["score"][4:] = False  # four rows are above 4, where two were above 8
    masks["q"][masks["q"].shape[0] // 2 :] = False
    gated.set_masks(masks)
    compact = prunegate.compact(gated).model
    assert compact(x).shape == (4, 3)
    torch.testing.assert_close(compact(x), gated(x), rtol=1e-12, atol=1e-12)
