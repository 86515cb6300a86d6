"""What a user relies on when they wrap a model, beyond the two promises."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import prunegate
from prunegate.errors import BudgetError, NothingToPruneError, TraceError


@pytest.fixture
def gated(small_net: nn.Module, small_input: torch.Tensor) -> prunegate.GatedModel:
    return prunegate.wrap(small_net, small_input)


def test_wrapping_leaves_the_model_alone(small_net: nn.Module, small_input: torch.Tensor) -> None:
    before, state = repr(small_net), copy.deepcopy(small_net.state_dict())
    expected = small_net(small_input)
    gated = prunegate.wrap(small_net, small_input)
    assert repr(small_net) == before
    assert torch.equal(small_net(small_input), expected)
    unwrapped = gated.unwrap()
    assert list(unwrapped.state_dict()) == list(state)
    assert all(torch.equal(a, b) for a, b in zip(unwrapped.state_dict().values(), state.values(), strict=True))
    assert type(unwrapped) is type(small_net)
    assert repr(unwrapped) == before
    assert torch.equal(unwrapped(small_input), expected)


def test_open_gates_compute_the_dense_model(
    gated: prunegate.GatedModel, small_net: nn.Module, small_input: torch.Tensor
) -> None:
    assert torch.equal(gated.eval()(small_input), small_net(small_input))


def test_groups_are_those_of_the_network(gated: prunegate.GatedModel) -> None:
    """The stem's channels run through addition and depthwise convolution; the head reads a concatenation."""
    by_name = {group.name: group for group in gated.groups}
    assert {name: group.num_units for name, group in by_name.items()} == {
        "stem": 12,
        "grouped": 8,
        "side": 5,
    } or {name: group.num_units for name, group in by_name.items()} == {"stem": 6, "grouped": 8, "side": 5}
    stem = {(member.tensor, member.axis) for member in by_name["stem"].members}
    assert {("stem.weight", 0), ("norm.running_var", 0), ("inner.weight", 0), ("inner.weight", 1)} <= stem
    assert [p.name for p in gated.pinned] == ["head"]
    assert "output" in gated.pinned[0].reason


def test_every_tensor_axis_is_in_the_groups_at_most_once(gated: prunegate.GatedModel) -> None:
    owners: dict[tuple[str, int, int], str] = {}
    for group in gated.groups:
        for member in group.members:
            for position, unit in enumerate(member.units):
                if unit >= 0:
                    assert owners.setdefault((member.tensor, member.axis, position), group.name) == group.name
                    assert unit < group.num_units


@pytest.mark.parametrize("metric", ["macs", "params"])
def test_expected_cost_at_certainty_is_the_realised_cost(gated: prunegate.GatedModel, metric: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        with torch.no_grad():
            hard = torch.rand(gated.gates.logits.shape, generator=generator) < 0.6
            gated.gates.logits.copy_(torch.where(hard, 1e4, -1e4))
            for group in gated.groups:
                gated.gates[group.name].logits[0] = 1e4
        assert int(gated.expected_cost(metric)) == gated.realised_cost(metric)


def test_expected_cost_has_the_gradient_of_its_finite_difference(gated: prunegate.GatedModel) -> None:
    gated.gates.double()
    with torch.no_grad():
        gated.gates.logits.normal_(generator=torch.Generator().manual_seed(0))
    gated.expected_cost("macs").backward()
    gradient = gated.gates.logits.grad
    assert gradient is not None
    for unit in (0, 7, 13):
        with torch.no_grad():
            gated.gates.logits[unit] += 1e-5
            above = float(gated.expected_cost("macs"))
            gated.gates.logits[unit] -= 2e-5
            below = float(gated.expected_cost("macs"))
            gated.gates.logits[unit] += 1e-5
        assert float(gradient[unit]) == pytest.approx((above - below) / 2e-5, rel=1e-6)


def test_harden_leaves_no_room_for_another_unit(gated: prunegate.GatedModel) -> None:
    with torch.no_grad():
        gated.gates.logits.normal_(generator=torch.Generator().manual_seed(2))
    limit = int(0.4 * gated.dense_cost())
    gated.harden(("macs", limit))
    assert gated.realised_cost() <= limit
    masks = gated.masks()
    for group in gated.groups:
        for unit in (~masks[group.name]).nonzero().flatten().tolist():
            more = {name: mask.clone() for name, mask in masks.items()}
            more[group.name][unit] = True
            gated.set_masks(more)
            assert gated.realised_cost() > limit
    gated.set_masks(masks)


def test_harden_keeps_the_higher_logits(gated: prunegate.GatedModel) -> None:
    with torch.no_grad():
        gated.gates.logits.normal_(generator=torch.Generator().manual_seed(2))
    gated.harden(("params", gated.dense_cost("params") // 2))
    for group in gated.groups:
        logits, mask = gated.gates[group.name].logits.detach(), gated.masks()[group.name]
        if not mask.all():
            assert logits[mask].min() > logits[~mask].max()


def test_budget_below_the_least_reachable_is_refused(gated: prunegate.GatedModel) -> None:
    with pytest.raises(BudgetError, match=r"found 10 macs .* expected at least .*Raise the fraction"):
        gated.harden(("macs", 10))


def test_unknown_metric_is_refused(gated: prunegate.GatedModel) -> None:
    with pytest.raises(BudgetError, match=r"found 'mac', expected one of macs, params, .*\. Nearest: macs"):
        gated.expected_cost("mac")


def test_excluded_groups_are_pinned_with_the_pattern(small_net: nn.Module, small_input: torch.Tensor) -> None:
    gated = prunegate.wrap(small_net, small_input, exclude=["stem*"])
    assert "stem" not in [group.name for group in gated.groups]
    assert "excluded by the pattern 'stem*'" in next(p.reason for p in gated.pinned if p.name == "stem")
    with pytest.raises(TraceError, match=r"exclude: 'steem' matches no channel group"):
        prunegate.wrap(small_net, small_input, exclude=["steem"])


def test_model_without_prunable_channels_is_refused() -> None:
    with pytest.raises(NothingToPruneError, match="no channel group can be pruned"):
        prunegate.wrap(nn.Linear(4, 3), torch.randn(2, 4))
    with pytest.raises(NothingToPruneError, match="the model: has no parameters"):
        prunegate.wrap(nn.ReLU(), torch.randn(2, 4))


def test_model_that_does_not_run_is_refused_with_the_place(small_net: nn.Module) -> None:
    with pytest.raises(TraceError, match="stem: running the model on the example inputs failed"):
        prunegate.wrap(small_net, torch.randn(2, 5, 8, 8).double())
    with pytest.raises(TraceError, match="example_inputs: found list, expected a tensor, a tuple"):
        prunegate.wrap(small_net, [torch.randn(2, 3, 8, 8)])


def test_inputs_as_tuple_and_dict_find_the_same_groups(small_net: nn.Module, small_input: torch.Tensor) -> None:
    names = [group.name for group in prunegate.wrap(small_net, small_input).groups]
    assert [g.name for g in prunegate.wrap(small_net, (small_input,)).groups] == names
    assert [g.name for g in prunegate.wrap(small_net, {"x": small_input}).groups] == names


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_offer_the_same_groups(
    gated: prunegate.GatedModel, small_net: nn.Module, small_input: torch.Tensor, dtype: torch.dtype
) -> None:
    """Rounding in half precision must not pass for a wrong channel when the surgery is tried."""
    half = prunegate.wrap(small_net.to(dtype), small_input.to(dtype))
    assert [g.name for g in half.groups] == [g.name for g in gated.groups]
    half.harden(("macs", half.dense_cost() // 2))
    assert next(prunegate.compact(half).model.parameters()).dtype == dtype


def test_explanation_names_groups_and_reasons(gated: prunegate.GatedModel) -> None:
    text = str(gated.explain())
    assert "stem" in text
    assert "part of the model's output" in text
    assert 0.5 < gated.explain().reachable_macs_share < 1.0


def test_compact_model_can_be_trained_and_wrapped_again(gated: prunegate.GatedModel, small_input: torch.Tensor) -> None:
    gated.harden(("macs", gated.dense_cost() // 2))
    once = prunegate.compact(gated).model
    once.train()(small_input).sum().backward()
    assert all(p.grad is not None for p in once.parameters())
    again = prunegate.wrap(once.eval(), small_input)
    again.harden(("macs", again.dense_cost() // 2))
    assert again.dense_cost() == gated.realised_cost()
    assert prunegate.compact(again).certificate.float64.max_rel <= 1e-9


def test_code_that_branches_on_the_number_of_channels_is_refused_by_name() -> None:
    class Few(nn.Module):
        """Goes wrong where less is left than the dry run in wrap() leaves."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            return self.b(x if x.shape[1] > 2 else x[:, :-1])

    gated = prunegate.wrap(Few().double().eval(), torch.randn(2, 5, dtype=torch.float64))
    gated.set_masks({"a": torch.arange(8) < 2})
    with pytest.raises(prunegate.CompactionError, match=r"makes a tensor of shape.*exclude="):
        prunegate.compact(gated)


def test_compaction_that_would_differ_is_refused(gated: prunegate.GatedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Surgery that slices one tensor at the wrong places must be caught by measuring."""
    import prunegate.wrapping.compact_model as module

    honest = module.cut

    def wrong(model: nn.Module, plan: object) -> object:
        done = honest(model, plan)  # type: ignore[arg-type]
        model.get_submodule("side").weight = nn.Parameter(model.get_parameter("side.weight") + 0.1)
        return done

    monkeypatch.setattr(module, "cut", wrong)
    gated.set_masks(gated.masks())
    with pytest.raises(prunegate.CompactionError, match="the compact model differs from the gated one by"):
        prunegate.compact(gated)


def test_explain_tells_the_reach_of_each_back_end_tried_and_what_to_do() -> None:
    class Positions(nn.Module):
        """Code that calls operations by themselves with positions, which only a graph can follow."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.b(torch.relu(self.a(x)))
            cut = torch.ops.aten.slice
            return self.c(torch.cat([cut(x, 1, 4, 8), cut(x, 1, 0, 4)], dim=1))

    gated = prunegate.wrap(Positions(), torch.randn(2, 5))
    told = gated.explain()
    assert set(told.reach) == {"module", "graph"}
    assert told.backend == "graph"
    assert told.reach["graph"].macs_share > told.reach["module"].macs_share > 0
    assert told.reach["graph"].macs_share == pytest.approx(told.reachable_macs_share)
    assert told.reach["graph"].params_share > told.reach["module"].params_share
    assert "module: " in str(told)

    by_module = prunegate.wrap(Positions(), torch.randn(2, 5), backend="module")
    refused = next(p for p in by_module.pinned if p.name == "b")
    assert "cutting it breaks the model" in refused.reason
    assert 'backend="graph"' in refused.advice
    assert all(row.advice for row in told.pinned)
