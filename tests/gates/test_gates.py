"""Gates on a whole model: draws, the unit that always stays, fixed masks, state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import prunegate
from prunegate.errors import MaskError
from prunegate.gates import ESTIMATORS


@pytest.fixture
def gated(small_net: nn.Module, small_input: torch.Tensor) -> prunegate.GatedModel:
    return prunegate.wrap(small_net.float(), small_input.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_drawn_masks_are_exactly_zero_or_one_in_every_dtype(gated: prunegate.GatedModel, dtype: torch.dtype) -> None:
    gated.train()
    gated.gates.to(dtype)
    gated.tau = 0.05
    with torch.no_grad():
        gated.gates.logits.zero_()
    seen = torch.cat([gated.gates.draw() for _ in range(50)])
    assert set(seen.unique().tolist()) == {0.0, 1.0}
    assert set(seen.to(dtype).unique().tolist()) == {0.0, 1.0}


def test_sample_mean_approaches_the_keep_probability(gated: prunegate.GatedModel) -> None:
    """Each unit's mean over 4,000 draws within 5 standard errors of sigmoid(logit)."""
    gated.train()
    group = gated.groups[0]
    with torch.no_grad():
        gated.gates.logits.fill_(4.0)
        gated.gates[group.name].logits.copy_(torch.linspace(-2, 2, group.num_units))
        draws = torch.stack([gated.gates.draw()[group.units] for _ in range(4000)]).mean(0)
    expected = torch.sigmoid(gated.gates[group.name].logits.detach())
    error = (expected * (1 - expected) / 4000).sqrt()
    sampled = slice(0, group.num_units - 1)  # the highest logit always stays
    assert ((draws - expected).abs() < 5 * error)[sampled].all()
    assert draws[-1] == 1.0


def test_the_highest_logit_stays_when_all_are_negative(gated: prunegate.GatedModel) -> None:
    with torch.no_grad():
        gated.gates.logits.fill_(-4.0)
        for group in gated.groups:
            gated.gates[group.name].logits[1] = -3.0
    gated.eval()
    for mask in gated.masks().values():
        assert mask.nonzero().flatten().tolist() == [1]
    gated.train()
    for group in gated.groups:
        assert all(bool(gated.gates.draw()[group.units][1] == 1.0) for _ in range(20))


def test_one_of_equal_logits_stays(gated: prunegate.GatedModel) -> None:
    with torch.no_grad():
        gated.gates.logits.fill_(-1.0)
    assert all(int(mask.sum()) == 1 for mask in gated.masks().values())


def test_gradient_reaches_every_logit(gated: prunegate.GatedModel, small_input: torch.Tensor) -> None:
    gated.train()
    gated(small_input.float()).square().sum().backward()
    assert gated.gates.logits.grad is not None
    assert int((gated.gates.logits.grad != 0).sum()) == gated.gates.logits.numel()


def test_one_seed_gives_one_sequence_of_draws(gated: prunegate.GatedModel) -> None:
    gated.train()
    with torch.no_grad():
        gated.gates.logits.zero_()
    twin = copy.deepcopy(gated)
    assert all(torch.equal(gated.gates.draw(), twin.gates.draw()) for _ in range(5))
    state = copy.deepcopy(gated.state_dict())
    ahead = [gated.gates.draw() for _ in range(3)]
    gated.load_state_dict(state)
    assert all(torch.equal(a, gated.gates.draw()) for a in ahead)


def test_copying_after_a_training_forward_works(gated: prunegate.GatedModel, small_input: torch.Tensor) -> None:
    gated.train()
    gated(small_input.float())
    twin = copy.deepcopy(gated)
    gated.eval()
    twin.eval()
    assert torch.equal(twin(small_input.float()), gated(small_input.float()))


def test_fixed_masks_are_used_in_training_and_eval_until_released(gated: prunegate.GatedModel) -> None:
    name = gated.groups[0].name
    mask = torch.zeros(gated.groups[0].num_units, dtype=torch.bool)
    mask[2] = True
    gated.set_masks({name: mask})
    for mode in (True, False):
        gated.train(mode)
        assert torch.equal(gated.gates.draw()[gated.groups[0].units].bool(), mask)
    gated.release_masks()
    assert gated.masks()[name].all()


def test_masks_that_do_not_fit_are_refused(gated: prunegate.GatedModel) -> None:
    group = gated.groups[0]
    with pytest.raises(MaskError, match=r"no such channel group. Nearest: "):
        gated.set_masks({group.name + "x": torch.ones(group.num_units)})
    with pytest.raises(MaskError, match=rf"found a mask of shape \(3,\), expected \({group.num_units},\)"):
        gated.set_masks({group.name: torch.ones(3)})
    with pytest.raises(MaskError, match="keeps no unit, expected at least one"):
        gated.set_masks({group.name: torch.zeros(group.num_units)})


def test_an_unknown_estimator_is_refused_with_the_nearest(gated: prunegate.GatedModel) -> None:
    with pytest.raises(MaskError, match=r"found 'gumble', expected one of gumbel, .*Nearest: gumbel"):
        gated.gates.estimator = "gumble"


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_any_estimator_trains_and_hardens_without_loss(
    gated: prunegate.GatedModel, small_input: torch.Tensor, name: str
) -> None:
    gated.gates.estimator = name
    gated.train()
    (gated(small_input.float()).square().mean() + gated.expected_cost("macs") / gated.dense_cost("macs")).backward()
    assert gated.gates.logits.grad is not None
    assert int((gated.gates.logits.grad != 0).sum()) == gated.gates.logits.numel()
    gated.harden(("macs", gated.dense_cost("macs") // 2))
    assert prunegate.compact(gated).certificate.float64.max_rel <= 1e-9


def test_without_noise_the_expected_cost_is_the_realised_one(gated: prunegate.GatedModel) -> None:
    gated.gates.estimator = "sigmoid"
    with torch.no_grad():
        for group in gated.groups:
            gated.gates[group.name].logits.copy_(torch.linspace(-1, 1, group.num_units))
    assert float(gated.expected_cost("macs").detach()) == gated.realised_cost("macs")


def test_closed_units_stay_out_of_every_mask(gated: prunegate.GatedModel) -> None:
    gated.harden(("macs", gated.dense_cost("macs") // 2))
    first = gated.gates.hard_mask().clone()
    gated.gates.close_removed()
    with torch.no_grad():
        gated.gates.logits.fill_(4.0)
    gated.train()
    assert not any(bool((gated.gates.draw().bool() & ~first).any()) for _ in range(20))
    assert torch.equal(gated.gates.hard_mask(), first)
    assert torch.equal(gated.gates.keep_probability() > 0, first)
    with torch.no_grad():
        gated.gates.logits.fill_(-4.0)
        gated.gates.logits[~first] = 4.0  # closed units have the highest logits, and are still not the one that stays
    assert all(
        bool((mask & first[group.units]).any())
        for group, mask in zip(gated.groups, gated.masks().values(), strict=True)
    )
    gated.harden(("macs", gated.dense_cost("macs") // 3))
    assert not bool((gated.gates.hard_mask() & ~first).any())
    assert gated.realised_cost("macs") <= gated.dense_cost("macs") // 3


def test_closed_units_survive_a_state_dict(gated: prunegate.GatedModel, small_net: nn.Module) -> None:
    gated.harden(("macs", gated.dense_cost("macs") // 2))
    gated.gates.close_removed()
    other = prunegate.wrap(small_net.float(), gated.example_inputs.args[0])
    other.load_state_dict(copy.deepcopy(gated.state_dict()))
    assert torch.equal(other.gates.open_units(), gated.gates.open_units())
    assert not bool(other.gates.open_units().all())


def test_closing_needs_masks(gated: prunegate.GatedModel) -> None:
    with pytest.raises(MaskError, match="found masks that are drawn, expected fixed ones"):
        gated.gates.close_removed()
