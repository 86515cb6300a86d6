from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.recipe.short import timed_briefly, undrawn


@pytest.fixture(scope="package", autouse=True)
def brief_latencies() -> Iterator[None]:
    with timed_briefly():
        yield


@pytest.fixture(scope="module")
def no_pictures() -> Iterator[None]:
    """For tests that look at everything else that a run leaves."""
    with undrawn():
        yield
