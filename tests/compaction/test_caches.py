"""Caches that a model's code shares with all models of a process: what runs without data leave there."""

from __future__ import annotations

from functools import lru_cache, wraps

import torch
from torch import nn

from prunegate.groups.torch_workarounds.caches import caches_of
from tests.wrapping.exactness import assert_exact, noise, units


@lru_cache(maxsize=8)
def table(length: int) -> torch.Tensor:
    return torch.arange(length, dtype=torch.float64).sin()[:, None]


def kept(function):  # type: ignore[no-untyped-def]
    cached = lru_cache(maxsize=8)(function)

    @wraps(function)
    def wrapper(*args):  # type: ignore[no-untyped-def]
        return cached(*args)

    return wrapper


class Shared(nn.Module):
    """Reads two tables that are made once for all models, and decides by a value, so that it needs fake tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 12), nn.Linear(12, 3)

    @staticmethod
    @kept
    def other(length: int) -> torch.Tensor:
        return torch.arange(length, dtype=torch.float64).cos()[:, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x) * table(x.shape[1]) + self.other(x.shape[1])
        y = y * 2 if x.shape[0] > 1000 else y
        z: torch.Tensor = self.b(y)
        return z


def test_caches_are_found_on_classes_and_in_their_files() -> None:
    assert len(caches_of(Shared())) == 2
    assert not caches_of(nn.Linear(2, 2))


def test_a_table_that_was_made_without_data_is_not_met_by_a_real_run() -> None:
    model = Shared()
    model.double()(noise(2, 7, 5))  # the table is there already
    assert units(assert_exact(model, noise(2, 7, 5), (noise(3, 7, 5), noise(2, 9, 5)))) == {"a": 12}
    for found in (table(7), Shared.other(7)):
        assert type(found) is torch.Tensor
        assert found.device.type == "cpu"
