"""Operations within heads: of what lies along heads and their width, whole heads can go or dimensions of each."""

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
    """Note that an operation looks at all dimensions of each head: whole heads can go, or the same dimensions of all.

    Args:
        label: Over the heads and, along dimension ``inner``, their dimensions.
        leaves_out: Has the operation leave dimensions out, whose flat ids it is given; says whether it can.
        vectors: Labels of the operation's own weights along ``inner``, which go with the dimensions.
        heads: What stands for the heads in the result, of the label's shape but for 1 along ``inner``; see `head_ids`.
        prefers_dimensions: Whether dimensions would be taken if nothing else counted.
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
            call.pin(heads, "dimensions of these heads are removed, the heads stay")
        for vector in vectors:
            call.constraints.tie(kept, vector)
        if not leaves_out(kept.reshape(-1)):
            call.pin(kept, _CANNOT_LEAVE_OUT.format(call.name))
        return kept.reshape(-1)

    call.either("heads", whole, places, by_itself=places if prefers_dimensions else whole)


def head_ids(call: Call, label: Ids, inner: int) -> Ids:
    """Fresh ids for the heads that a label lies along, laid out as it is but for 1 along ``inner``."""
    first = label.take([0], axis=inner)
    names, numbers = np.unique(first, return_inverse=True)
    ids = call.constraints.new_axis("constant", HEADS, 0, len(names))
    return ids[numbers].reshape(first.shape)
