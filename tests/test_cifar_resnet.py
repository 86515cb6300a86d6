"""The residual networks of the CIFAR papers."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import prunegate
from prunegate.builders import Builder
from prunegate.cifar_resnet import CifarResNet
from prunegate.identify import identify


def test_resnet56_has_the_published_size() -> None:
    """0.85 M parameters, and 125 M multiply-adds for a CIFAR image, as the paper and its reproductions say."""
    model = Builder.parse("prunegate/cifar_resnet56").build().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(0.855e6, rel=0.01)
    assert counter.get_total_flops() / 2 == pytest.approx(126e6, rel=0.02)


def test_all_channels_but_the_classes_can_be_pruned() -> None:
    model = Builder.parse("prunegate/cifar_resnet14", {"in_chans": 1}).build()
    gated = prunegate.wrap(model, torch.zeros(2, 1, 28, 28))
    assert [group.name for group in gated.pinned] == ["fc"]
    assert gated.analysis.num_units == 2 * (16 + 32 + 64) + 16 + 32 + 64


def test_its_builder_is_found_out() -> None:
    builder = Builder.parse("prunegate/cifar_resnet20", {"in_chans": 1})
    assert identify(builder.build()) == Builder("prunegate", "cifar_resnet20", {"in_chans": 1})


def test_a_depth_that_makes_no_whole_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"depth: found 21, expected 6n \+ 2"):
        CifarResNet(21)
