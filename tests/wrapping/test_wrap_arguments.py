"""Arguments of `wrap` that are easily given wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import prunegate
from prunegate import TraceError


class Three(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.head = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.c2(torch.relu(self.c1(x)))))


X = torch.zeros(2, 8)


@pytest.mark.parametrize("exclude", ["c1", ["c1"], ("c1",), "c1*", {"c1"}, iter(["c1"])])
def test_one_pattern_is_as_good_as_a_list_of_one(exclude: Any) -> None:
    gated = prunegate.wrap(Three(), X, exclude=exclude)
    assert [group.name for group in gated.groups] == ["c2"]
    (reason,) = (pinned.reason for pinned in gated.pinned if pinned.name == "c1")
    assert "excluded by the pattern 'c1" in reason


@pytest.mark.parametrize("exclude", [3, [nn.Linear(1, 1)], [None], None])
def test_patterns_that_are_no_text_are_refused(exclude: Any) -> None:
    with pytest.raises(TraceError, match=r"exclude: found .*expected the name of a channel group or of a tensor"):
        prunegate.wrap(Three(), X, exclude=exclude)


def test_a_pattern_that_matches_nothing_is_shown_whole() -> None:
    with pytest.raises(TraceError, match="exclude: 'conv1' matches no channel group"):
        prunegate.wrap(Three(), X, exclude="conv1")


@pytest.mark.parametrize("round_to", [16, 17, 1000])
def test_rounding_that_leaves_nothing_to_remove_is_refused(round_to: int) -> None:
    with pytest.raises(TraceError, match=rf"round_to: found {round_to}, expected less than 16, the units of .*\(c1\)"):
        prunegate.wrap(Three(), X, round_to=round_to)


@pytest.mark.parametrize("round_to", ["8", 2.0, True, 0, -4, None])
def test_rounding_that_is_no_whole_number_is_refused(round_to: Any) -> None:
    with pytest.raises(TraceError, match=r"round_to: found .*expected a whole number of at least 1"):
        prunegate.wrap(Three(), X, round_to=round_to)


def test_rounding_that_keeps_some_groups_whole_is_taken() -> None:
    gated = prunegate.wrap(Three(), X, round_to=12)
    gated.harden(("macs", gated.least_cost()))
    assert {name: int(mask.sum()) for name, mask in gated.masks().items()} == {"c1": 12, "c2": 12}
