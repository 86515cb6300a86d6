"""`compact` takes masks that are fixed, and no others: what the logits say half-way meets no budget."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import prunegate
from prunegate import GatedModel, MaskError

REFUSED = r"compact: found masks that are drawn from the logits, expected fixed ones.*gated\.harden.*GateSteps\.finish"


def gated_model() -> GatedModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    return prunegate.wrap(net, torch.randn(4, 8)).train()


def trained(gated: GatedModel, frozen: float = 0.0, steps: int = 4) -> prunegate.GateSteps:
    gates = prunegate.GateSteps(gated, 0.5, steps=steps, frozen=frozen)
    go_on(gated, gates, steps)
    return gates


def go_on(gated: GatedModel, gates: prunegate.GateSteps | None, steps: int) -> None:
    optimizer = torch.optim.SGD(gated.weight_parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        gated(torch.randn(4, 8)).square().sum().backward()
        if gates is not None:
            gates.step()
        optimizer.step()


def hardened(gated: GatedModel) -> None:
    gated.harden(prunegate.Budget("macs", 0.5))


def released(gated: GatedModel) -> None:
    hardened(gated)
    gated.release_masks()


def closed(gated: GatedModel) -> None:
    hardened(gated)
    gated.gates.close_removed()


def loaded_soft(gated: GatedModel) -> None:
    hardened(gated)
    gated.load_state_dict(gated_model().state_dict())


def loaded_hard(gated: GatedModel) -> None:
    other = gated_model()
    hardened(other)
    gated.load_state_dict(copy.deepcopy(other.state_dict()))


@pytest.mark.parametrize("state", [lambda _: None, lambda g: g.eval(), trained, released, closed, loaded_soft])
def test_masks_that_are_drawn_are_refused(state: Callable[[GatedModel], object]) -> None:
    gated = gated_model()
    state(gated)
    before = copy.deepcopy(gated.state_dict())
    with pytest.raises(MaskError, match=REFUSED):
        prunegate.compact(gated)
    assert all(torch.equal(before[name], value) for name, value in gated.state_dict().items())
    gated.set_masks(gated.masks())  # what the message offers
    assert prunegate.compact(gated).costs["macs"]["compact"] == gated.realised_cost()


@pytest.mark.parametrize(
    "state",
    [
        hardened,
        loaded_hard,
        lambda g: g.set_masks({"0": torch.arange(16) < 8}),
        lambda g: trained(g).finish(),
        lambda g: trained(g).finish([torch.randn(4, 8)]),
        lambda g: trained(g, frozen=0.5),
        lambda g: (hardened(g), go_on(g, None, 3)),
        lambda g: (closed(g), trained(g).finish()),
    ],
    ids=["harden", "load", "set_masks", "finish", "finish with batches", "frozen", "finetuned", "nested"],
)
def test_masks_that_are_fixed_are_taken(state: Callable[[GatedModel], object]) -> None:
    gated = gated_model()
    state(gated)
    result = prunegate.compact(gated)
    assert result.costs["macs"]["compact"] <= 0.5 * gated.dense_cost()
