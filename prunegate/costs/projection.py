"""The largest set of units, in order of preference, whose cost stays within a limit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from prunegate.costs.cost import Cost

Mask = npt.NDArray[np.bool_]


def keep_within(
    limits: Sequence[tuple[Cost, float]],
    preference: npt.NDArray[np.float64],
    groups: Sequence[slice],
    round_to: int | Sequence[int] = 1,
    allowed: Mask | None = None,
    least: Sequence[int] | None = None,
) -> Mask | None:
    """Choose hard masks that meet all ``limits`` and to which nothing can be added.

    Units are taken in blocks of ``round_to`` within their channel group (or of a size per group, whose blocks are only
    split if the whole group is kept), most preferred first. A group's first block is always kept, and further ones if
    more units are required. All other blocks are ordered by preference; the longest affordable prefix of this order is
    kept, and then every further block that still fits.

    Args:
        limits: Costs of the same units, each with its limit.
        preference: Shape (units,); higher values are kept longer. Equal preferences prune all groups alike.
        groups: The slice of each channel group's units.
        allowed: Units that may be kept, at least one of each group; all by default.
        least: Fewest units of each group to keep; one by default.

    Returns:
        bool, shape (units,), or None if even one block of each group costs more than a limit.
    """

    def fits(mask: Mask) -> bool:
        return all(cost.exact(mask) <= limit for cost, limit in limits)

    keep = np.zeros(len(preference), dtype=bool)
    blocks: list[tuple[float, float, npt.NDArray[np.int64]]] = []
    steps = [round_to] * len(groups) if isinstance(round_to, int) else round_to
    for group, fewest, step in zip(groups, least or [1] * len(groups), steps, strict=True):
        ranked = group.start + np.argsort(-preference[group], kind="stable")
        if allowed is not None:
            ranked = ranked[allowed[ranked]]
        parts = np.split(ranked, range(step, len(ranked), step))
        if not isinstance(round_to, int) and len(parts) > 1 and len(ranked) < group.stop - group.start:
            parts = [part for part in parts if len(part) == step]
        always = -(-fewest // step)
        keep[np.concatenate(parts[:always])] = True
        for place, part in enumerate(parts[always:], start=always):
            blocks.append((-float(preference[part].mean()), place / len(parts), part))
    if not fits(keep):
        return None
    order = [part for _, _, part in sorted(blocks, key=lambda block: block[:2])]

    low, high = 0, len(order)  # number of blocks known to fit, and the first number that may not
    while low < high:
        middle = (low + high + 1) // 2
        candidate = keep.copy()
        candidate[np.concatenate(order[:middle])] = True
        if fits(candidate):
            low = middle
        else:
            high = middle - 1
    if low:
        keep[np.concatenate(order[:low])] = True
    # Costs only grow with the number of kept units, so a block that does not fit now never will.
    full: set[int] = set()
    owner = np.searchsorted([group.start for group in groups], np.arange(len(preference)), side="right") - 1
    for part in order[low:]:
        number = int(owner[part[0]])
        if number in full:
            continue
        keep[part] = True
        if not fits(keep):
            keep[part] = False
            if len(part) == steps[number]:
                full.add(number)
    return keep
