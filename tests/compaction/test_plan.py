"""Plans as data: round trips, and refusal of malformed plans."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import prunegate
from prunegate.compaction import Plan, apply
from prunegate.errors import CompactionError
from tests.conftest import random_masks


@pytest.fixture
def result(small_net: nn.Module, small_input: torch.Tensor) -> prunegate.Compaction:
    gated = prunegate.wrap(small_net, small_input)
    gated.set_masks(random_masks(gated.groups, 0.5, 3))
    return prunegate.compact(gated)


def test_plan_survives_json(result: prunegate.Compaction) -> None:
    again = Plan.from_dict(json.loads(json.dumps(result.plan.as_dict())))
    assert again.kept == result.plan.kept
    assert again.num_units == result.plan.num_units
    assert again.attributes == result.plan.attributes
    assert again.tensors.keys() == result.plan.tensors.keys()
    for name, axes in again.tensors.items():
        assert all(np.array_equal(mask, result.plan.tensors[name][axis]) for axis, mask in axes.items())


def test_plan_applied_to_the_dense_model_gives_the_compact_one(
    result: prunegate.Compaction, small_net: nn.Module, small_input: torch.Tensor
) -> None:
    again = apply(copy.deepcopy(small_net), Plan.from_dict(result.plan.as_dict()))
    assert torch.equal(again(small_input), result.model.eval()(small_input))


MUTATIONS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no object": (lambda d: [], "plan: found list"),
    "no patterns": (lambda d: d.pop("patterns"), "plan.patterns: expected a list"),
    "negative size": (lambda d: d["patterns"][0].__setitem__(0, -4), "found size -4"),
    "huge size": (lambda d: d["patterns"][0].__setitem__(0, 10**12), "found size 1000000000000"),
    "size that is no number": (lambda d: d["patterns"][0].__setitem__(0, "9"), "expected \\[size, base64 bits\\]"),
    "bits that are no base64": (lambda d: d["patterns"][0].__setitem__(1, "*" * 8), "plan.patterns\\[0\\]"),
    "too few bits": (lambda d: d["patterns"][0].__setitem__(1, ""), "found 0 bytes"),
    "unknown pattern": (lambda d: d["groups"].__setitem__("stem", 10**6), "plan.groups.stem: found 1000000"),
    "negative pattern": (lambda d: d["groups"].__setitem__("stem", -1), "plan.groups.stem: found -1"),
    "true for a number": (lambda d: d["groups"].__setitem__("stem", True), "plan.groups.stem: found True"),
    "axis that is no axis": (lambda d: d["tensors"].__setitem__("stem.weight", {"-1": 0}), "found axis '-1'"),
    "size attribute of zero": (lambda d: d["attributes"].__setitem__("stem", {"groups": 0}), "found 0, expected"),
    "text as attribute": (lambda d: d["attributes"].__setitem__("stem", {"groups": "x"}), "found 'x', expected"),
}


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_malformed_plan_is_refused_with_the_field(
    result: prunegate.Compaction, mutation: tuple[Callable[[Any], Any], str]
) -> None:
    change, message = mutation
    data = json.loads(json.dumps(result.plan.as_dict()))
    changed = change(data)
    with pytest.raises(ValueError, match=message):
        Plan.from_dict(changed if isinstance(changed, list) and not changed else data)


def test_plan_for_another_model_is_refused(result: prunegate.Compaction) -> None:
    with pytest.raises(CompactionError, match="The plan was made for another model"):
        apply(nn.Sequential(nn.Linear(3, 3)), result.plan)
    with pytest.raises(CompactionError, match=r"stem\.training: found True, expected a size"):
        apply(
            nn.ModuleDict({"stem": nn.Linear(3, 3)}),
            Plan({}, {}, {}, {"stem": {"training": 3}}),
        )
