"""Runs end sooner: what they measure and draw at their end takes longer than the training of tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from prunegate.recipe import results
from prunegate.report import comparison


@contextmanager
def timed_briefly() -> Iterator[None]:
    """Each model's latency is measured in a few forwards, where a run takes three seconds for them."""
    with pytest.MonkeyPatch.context() as patch:
        brief = partial(comparison.measure_latency, seconds=0.0, least_repetitions=3)
        patch.setattr(comparison, "measure_latency", brief)
        yield


@contextmanager
def undrawn() -> Iterator[None]:
    """No picture is drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "draw_report", _nothing)
        yield


def _nothing(*_: Any) -> None: ...
