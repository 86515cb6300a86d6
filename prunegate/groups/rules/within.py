"""Operations within heads: either whole heads or head dimensions can be removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from prunegate.groups.rules.call import Call
from prunegate.groups.solving.constraints import HEADS
from prunegate.groups.solving.labels import varying
from prunegate.groups.solving.partition import Ids

_CANNOT_LEAVE_OUT = "{} is taken within each head, where nothing can be left out"


def choose_within(
    call: Call,
    label: Ids,
    inner: int,
    leaves_out: Callable[[Ids], bool],
    vectors: Sequence[Ids] = (),
    heads: Ids | None = None,
    prefers_dimensions: bool = False,
) -> None:
    """Record that an operation reads all dimensions of each head: whole heads or the same dimensions can be removed.

    Args:
        label: Label over the heads and, along dimension ``inner``, their dimensions.
        leaves_out: Makes the operation mask dimensions, given their flat ids; returns whether it can.
        vectors: Labels of the operation's own weights along ``inner``, which are removed with the dimensions.
        heads: The label of the heads in the result, of the label's shape except for 1 along ``inner``; see `head_ids`.
        prefers_dimensions: Whether dimensions are the default.
    """

    def whole() -> None:
        first = call.constraints.tie_along(label, inner)
        if heads is not None:
            call.constraints.tie(heads, first)
        for vector in vectors:
            call.pin(vector, "a scale that several sets of channels share")

    def places() -> Ids:
        kept = label
        for dim in varying(label):
            if dim != inner:
                kept = call.constraints.tie_along(kept, dim)
        if heads is not None:
            call.pin(heads, "dimensions of these heads are removed, the heads are kept")
        for vector in vectors:
            call.constraints.tie(kept, vector)
        if not leaves_out(kept.reshape(-1)):
            call.pin(kept, _CANNOT_LEAVE_OUT.format(call.name))
        return kept.reshape(-1)

    call.either("heads", whole, places, by_itself=places if prefers_dimensions else whole)


def head_ids(call: Call, label: Ids, inner: int) -> Ids:
    """New ids for the heads of a label, of its shape except for 1 along ``inner``."""
    first = label.take([0], axis=inner)
    names, numbers = np.unique(first, return_inverse=True)
    ids = call.constraints.new_axis("constant", HEADS, 0, len(names))
    return ids[numbers].reshape(first.shape)
