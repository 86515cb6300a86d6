"""The search for groups that cannot be cut."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from prunegate.compaction.dry_run import _kind_of, _largest_working

NAMES = [f"blocks.{i}.{layer}" for i in range(12) for layer in ("attention", "mlp")] + ["stem", "head"]


@given(st.sets(st.sampled_from(NAMES)))
def test_whatever_fails_is_refused_and_only_its_kind_with_it(bad: set[str]) -> None:
    tried: list[int] = []

    def error_of(chosen: Sequence[str]) -> str | None:
        tried.append(len(chosen))
        return "broken" if bad & set(chosen) else None

    working, errors = _largest_working(NAMES, error_of, _kind_of)
    assert working | errors.keys() == set(NAMES)
    assert not working & errors.keys()
    assert not working & bad
    for name in errors.keys() - bad:
        assert len({other for other in bad if _kind_of(other) == _kind_of(name)}) >= 2
    assert all("broken" in error for error in errors.values())


def test_many_like_blocks_need_few_runs() -> None:
    runs = 0

    def error_of(chosen: Sequence[str]) -> str | None:
        nonlocal runs
        runs += 1
        return "broken" if any("attention" in name for name in chosen) else None

    working, errors = _largest_working(NAMES, error_of, _kind_of)
    assert working == {name for name in NAMES if "attention" not in name}
    assert errors["blocks.11.attention"] == "like blocks.0.attention, broken"
    assert runs <= 12
