"""Limits are available as data wherever a model is explained, and calls outside of them are refused."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

import prunegate
from prunegate.errors import LimitError
from tests.conftest import random_masks, randomise
from tests.wrapping.test_own_code import Branches, Literals, Model, tokens


def replayed(block: nn.Module) -> prunegate.GatedModel:
    """A gated model whose block will be replayed, though its own code would serve."""
    gated = prunegate.wrap(randomise(Model(block)).double().eval(), tokens())
    gated.fix_ups = replace(gated.fix_ups, resized=(), replayed=gated.fix_ups.resized)
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    return gated


def test_a_model_whose_own_code_runs_has_no_limits() -> None:
    gated = prunegate.wrap(randomise(Model(Literals())).double().eval(), tokens())
    assert gated.limits == ()
    assert "limits:" not in str(gated.explain())
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    result = prunegate.compact(gated)
    assert result.certificate.limits == ()
    assert any("another size" in way for way in result.certificate.checked)
    assert any("training mode" in way and "gradients" in way for way in result.certificate.checked)


def test_what_is_replayed_is_a_limit_that_is_told_everywhere() -> None:
    gated = replayed(Literals())
    (limit,) = gated.limits
    assert limit.module == "block"
    assert str(limit) in str(gated.explain())
    result = prunegate.compact(gated)
    assert result.certificate.limits == (str(limit),)
    assert str(limit) in result.summary()
    assert result.certificate.as_dict()["limits"] == [str(limit)]


def test_a_call_outside_of_the_limits_names_them() -> None:
    model = prunegate.compact(replayed(Literals())).model.eval()
    for again in (model, pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            assert again(tokens(5)).shape == (5, 7, 3)
        with pytest.raises(
            LimitError, match=r"block: found argument 1 of shape \(2, 11, \d+\), expected \(samples, 7,"
        ):
            again(tokens(2, 11))


def test_an_argument_that_was_not_there_is_refused() -> None:
    gated = prunegate.wrap(randomise(Model(Literals())).double().eval(), tokens(), backend="graph")
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    assert [limit.module for limit in gated.limits] == [""]
    model = prunegate.compact(gated).model
    with pytest.raises(LimitError, match=r"the model: found argument 1 of shape"):
        model(tokens(2, 9))
    with pytest.raises(LimitError, match="scale"):
        model(tokens(2), scale=3.0)


def test_what_training_does_otherwise_cannot_be_played_back() -> None:
    with pytest.raises(prunegate.CompactionError, match="differs from the gated one"):
        prunegate.compact(replayed(Branches()))
