"""How far a gated model and its compact one are apart: outputs and gradients, in either mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import prunegate
from prunegate.compaction.equivalence import Side, difference, run
from prunegate.groups import ExampleInputs
from tests.conftest import random_masks, randomise


def assert_exact(model: nn.Module, inputs: Any, others: tuple[Any, ...] = (), seeds: int = 2) -> prunegate.GatedModel:
    """Wrap a model in float64 and compare it under random masks with what is compacted, also on other inputs."""
    gated = prunegate.wrap(randomise(model).double().eval(), inputs)
    assert not gated.limits
    for seed in range(seeds):
        gated.set_masks(random_masks(gated.groups, 0.5, seed))
        result = prunegate.compact(gated)
        assert isinstance(result.model, type(model))
        for given in (inputs, *others):
            for training in (False, True):
                example = ExampleInputs.of(given)
                first = run(Side(gated, gated.model), example, training, gradients=True)
                second = run(Side.of(result.model), example, training, gradients=True)
                apart = difference(first, second, result.plan.tensors).max_rel
                assert apart <= 1e-9, (seed, training, apart)
    return gated


def units(gated: prunegate.GatedModel) -> dict[str, int]:
    return {group.name: group.num_units for group in gated.groups}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))
