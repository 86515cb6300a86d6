from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunegate import BudgetError, TauSchedule
from prunegate.training import tau_at

SCHEDULES = ["exponential", "linear", "constant"]


def gated() -> Any:
    """The schedule needs no more of a gated model than a tau to set."""
    return SimpleNamespace(tau=None)


@given(
    start=st.floats(0.1, 100.0),
    ratio=st.floats(0.001, 1.0),
    early=st.floats(-0.5, 1.5),
    later=st.floats(0.0, 1.0),
    schedule=st.sampled_from(SCHEDULES),
)
def test_tau_at_never_rises_and_stays_between_its_ends(
    start: float, ratio: float, early: float, later: float, schedule: Any
) -> None:
    end = start * ratio
    first = tau_at(early, start, end, schedule)
    second = tau_at(early + later, start, end, schedule)
    assert second <= first * (1 + 1e-12)
    assert end * (1 - 1e-12) <= second <= start * (1 + 1e-12)


@pytest.mark.parametrize("schedule", ["exponential", "linear"])
def test_schedule_endpoints_are_exact(schedule: Any) -> None:
    model = gated()
    # Values whose powers and sums round: 0.7 · (0.09 / 0.7) is not 0.09 in floating point.
    tau = TauSchedule(model, start=0.7, end=0.09, steps=7, schedule=schedule)
    assert model.tau == 0.7
    for _ in range(6):
        tau.step()
        assert 0.09 < model.tau < 0.7
    tau.step()
    assert model.tau == 0.09
    tau.step()
    assert model.tau == 0.09


def test_schedules_differ_half_way() -> None:
    assert tau_at(0.5, 4.0, 1.0, "exponential") == pytest.approx(2.0)
    assert tau_at(0.5, 4.0, 1.0, "linear") == pytest.approx(2.5)
    assert tau_at(0.5, 4.0, 1.0, "constant") == 4.0


def test_state_dict_restores_the_place_and_sets_tau() -> None:
    tau = TauSchedule(gated(), steps=10)
    for _ in range(4):
        tau.step()
    other = gated()
    restored = TauSchedule(other, steps=10)
    restored.load_state_dict(tau.state_dict())
    assert other.tau == tau_at(0.4, 2.0, 0.1)
    restored.step()
    assert other.tau == tau_at(0.5, 2.0, 0.1)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"end": 0.0}, r"tau: found start 2\.0 and end 0\.0, expected 0 < end <= start"),
        ({"end": -0.1}, r"end -0\.1, expected 0 < end <= start"),
        ({"start": 0.05}, r"found start 0\.05 and end 0\.1, expected 0 < end <= start"),
        ({"end": float("nan")}, "end nan, expected 0 < end <= start"),
        ({"steps": 0}, "tau: found 0 steps, expected at least 1"),
        ({"schedule": "cosine"}, "found schedule 'cosine', expected exponential, linear or constant"),
    ],
)
def test_senseless_schedule_is_refused(changed: dict[str, Any], text: str) -> None:
    model = gated()
    with pytest.raises(BudgetError, match=text):
        TauSchedule(model, **changed)
    assert model.tau is None, "a refused schedule must not have touched the model"
