"""Labels have to be moved like the data."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegate.groups.solving.labels import reshaped


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], list[bool]]:
    """A shape, another with as many elements, and the dimensions on which a label varies."""
    factors = draw(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=6))

    def grouped() -> tuple[int, ...]:
        cuts = sorted(draw(st.lists(st.integers(0, len(factors)), max_size=4)))
        bounds = [0, *cuts, len(factors)]
        return tuple(math.prod(factors[a:b]) for a, b in pairwise(bounds))

    before, after = grouped(), grouped()
    return before, after, draw(st.lists(st.booleans(), min_size=len(before), max_size=len(before)))


@settings(max_examples=300, deadline=None)
@given(reshapes())
def test_reshaped_label_broadcasts_to_the_reshaped_full_label(
    case: tuple[tuple[int, ...], tuple[int, ...], list[bool]],
) -> None:
    before, after, varies = case
    shape = [size if on else 1 for size, on in zip(before, varies, strict=True)]
    label = np.arange(math.prod(shape)).reshape(shape)
    found = np.broadcast_to(reshaped(label, before, after), after)
    assert np.array_equal(found, np.broadcast_to(label, before).reshape(after))
