"""Sizes that a model holds in containers, by name or by place, and the masks that it makes for its heads."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunegate
from prunegate.compaction.held_sizes import held, hold, sizes_in_containers
from prunegate.errors import CompactionError
from tests.conftest import random_masks
from tests.wrapping.exactness import assert_exact, noise, units


class Split(nn.Module):
    """Heads of a width that it holds by name and, for speed, by place; it is copied by what it is told by name."""

    def __init__(self, **lengths: int) -> None:
        super().__init__()
        self.lengths = lengths
        self._pairs = tuple(lengths.items())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _, size in self._pairs:
            if x.shape[-1] % size:
                raise ValueError(f"cannot divide {x.shape[-1]} by {size}")
            x = x.unflatten(-1, (-1, size))
        return x

    def __getstate__(self) -> dict[str, int]:
        return dict(self.lengths)

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.q, self.k, self.b = nn.Linear(5, 18), nn.Linear(18, 36), nn.Linear(18, 36), nn.Linear(18, 3)
        self.split_q, self.split_k, self.o = Split(width=9), Split(width=9), nn.Linear(36, 18)
        self.norm = nn.LayerNorm(18, elementwise_affine=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.a(x))
        q, k = self.split_q(self.q(x)), self.split_k(self.k(x))
        y: torch.Tensor = self.b(x + self.o((q.softmax(1) * k).flatten(2)))
        return y


def test_sizes_in_containers_keep_a_models_own_code(tmp_path: Path) -> None:
    gated = assert_exact(Model(), noise(2, 7, 5), (noise(3, 4, 5),))
    assert units(gated) == {"a": 18, "q": 9}
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    result = prunegate.compact(gated)
    assert result.fix_ups.is_plain
    width = int(gated.masks()["q"].sum())
    assert result.plan.attributes["split_k"] == {"lengths.width": width, "_pairs.0.1": width}
    assert result.plan.attributes["norm"] == {"normalized_shape.0": int(gated.masks()["a"].sum())}
    assert result.model.split_k.lengths == {"width": width}
    result.save(tmp_path / "compact.safetensors")
    loaded = prunegate.load(tmp_path / "compact.safetensors", model=Model().double())
    x = noise(3, 11, 5)
    with torch.no_grad():
        for again in (loaded.eval(), copy.deepcopy(result.model)):
            assert torch.equal(again(x), result.model(x))


def test_an_entry_is_replaced_in_a_container_of_the_modules_own() -> None:
    shared: dict[str, Any] = {"width": 4, "layers": [4, "x", 8], "far": {"too": {"deep": 4}}}
    module = nn.Module()
    module.config, module.size = shared, 4
    assert sizes_in_containers(module) == {4: ["config.width", "config.layers.0"], 8: ["config.layers.2"]}
    hold(module, "config.layers.0", 2)
    assert held(vars(module), "config.layers.0") == 2
    assert shared["layers"] == [4, "x", 8]
    assert held(vars(module), "config.layers.7") is None
    assert held(vars(module), "size.x") is None


def test_a_plan_that_sets_no_size_is_refused() -> None:
    from prunegate.compaction import set_attributes

    for name in ("lengths.height", "lengths.width.0", "nothing.0", "_modules.x"):
        with pytest.raises(CompactionError, match="expected a size like 3 to replace"):
            set_attributes(Model(), {"split_q": {name: 3}})


class MaskedHeads(nn.Module):
    """Hands its attention one mask for each head, of as many heads as the model, or the attention, says."""

    def __init__(self, holds: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 24), nn.Linear(24, 3)
        self.attention = nn.MultiheadAttention(24, 3, batch_first=True)
        self.heads = 3
        self.holds = holds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        own = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        hidden = (x[..., 0] < 0).unsqueeze(1).expand(-1, x.shape[1], -1) & ~own
        mask = torch.zeros(hidden.shape, dtype=x.dtype, device=x.device).masked_fill(hidden, -torch.inf)
        mask = mask.repeat_interleave(self.heads if self.holds else self.attention.num_heads, 0)
        x = self.a(x)
        y: torch.Tensor = self.b(x + self.attention(x, x, x, attn_mask=mask, need_weights=False)[0])
        return y


@pytest.mark.parametrize("holds", [True, False])
def test_a_mask_for_each_head_has_as_many_as_are_left(holds: bool) -> None:
    gated = assert_exact(MaskedHeads(holds), noise(2, 7, 5), (noise(3, 4, 5),))
    assert units(gated) == {"a": 24, "attention.in_proj_weight": 3}
    assert gated.fix_ups.is_plain


class Chosen(nn.Module):
    """Heads of as many rows as its values choose, which are others once channels are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.q, self.b = nn.Linear(5, 12), nn.Linear(12, 18), nn.Linear(18, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        x = x[x.sum(-1) > 0]
        y: torch.Tensor = self.b(self.q(x).view(x.shape[0], 3, 6).softmax(-2).reshape(x.shape[0], 18))
        return y.sum(0)


def test_a_number_of_rows_that_follows_values_is_left_to_the_code() -> None:
    gated = assert_exact(Chosen(), noise(40, 5), (noise(30, 5),))
    assert units(gated) == {"a": 12, "q": 6}
    assert not gated.fix_ups.replays
