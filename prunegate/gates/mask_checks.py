"""What hard masks have to be to be fixed."""

from __future__ import annotations

import torch

from prunegate.errors import MaskError


def refuse_unfit(name: str, mask: torch.Tensor, units: int, least: int) -> None:
    """Refuse a mask that does not fit its channel group.

    Args:
        name: The channel group.
        units: How many units it has.
        least: How many of them have to stay.

    Raises:
        MaskError: A wrong shape, or too few units are left.
    """
    if mask.shape != (units,):
        raise MaskError(
            f"{name}: found a mask of shape {tuple(mask.shape)}, expected {(units,)}, "
            "one entry for each unit of the channel group."
        )
    if mask.is_meta:
        return
    kept = int(mask.bool().sum())
    if not kept:
        raise MaskError(
            f"{name}: found a mask that keeps no unit, expected at least one. Removing a whole channel "
            "group would leave a layer without channels. Keep one unit."
        )
    if kept < least:
        raise MaskError(
            f"{name}: found a mask that keeps {kept} unit(s), expected at least {least}. The "
            f"model takes a statistic over these channels, an unbiased variance say, that fewer have not. Keep "
            f"{least} units."
        )
