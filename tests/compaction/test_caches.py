"""Process-wide caches of a model's code, which runs without data must not affect."""

from __future__ import annotations

from functools import lru_cache, wraps

import torch
from torch import nn

import prunegate
from prunegate.compaction import FixUps, rebuild
from prunegate.groups import ExampleInputs, copy_with
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


class Positions(nn.Module):
    """Sines whose frequencies follow the width, so that a narrower table is another one: it is replayed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, length: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        frequencies = 1.0 / 100 ** (
            torch.arange(self.width // 2, device=device, dtype=torch.float64) / (self.width // 2)
        )
        angles = torch.arange(length, device=device, dtype=torch.float64)[:, None] * frequencies[None]
        return torch.cat([angles.sin(), angles.cos()], 1)[None].to(dtype)


class Located(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.positions = nn.Linear(5, 12), nn.Linear(12, 3), Positions(12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        z: torch.Tensor = self.b(y * self.positions(y.shape[1], y.device, y.dtype))
        return z


def test_a_module_that_is_replayed_makes_tensors_where_it_is_told_to() -> None:
    """It is given no tensor to take a device from; without data, and on a GPU, tensors of the CPU do not fit."""
    model = Located().double().eval()
    gated = prunegate.wrap(model, noise(2, 7, 5))
    gated.set_masks({"a": torch.arange(6) % 3 == 0})
    result = prunegate.compact(gated)
    inputs = ExampleInputs.of(noise(2, 7, 5))
    played = rebuild(copy_with(model), result.plan, FixUps(replayed=("positions",)), inputs)
    with torch.no_grad():
        torch.testing.assert_close(played(noise(3, 7, 5)), gated.eval()(noise(3, 7, 5)), rtol=1e-9, atol=1e-12)
    assert played.to("meta")(torch.empty(2, 7, 5, dtype=torch.float64, device="meta")).is_meta
