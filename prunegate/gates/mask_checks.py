"""Checks of hard masks before they are fixed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prunegate.errors import MaskError


def named_masks(masks: Any) -> Mapping[str, Any]:
    """Masks by the names of their channel groups.

    Raises:
        MaskError: It is not a mapping.
    """
    if not isinstance(masks, Mapping):
        raise MaskError(
            f"masks: found a {type(masks).__name__}, expected a dict from the names of channel groups to masks. "
            "gated.masks() shows the form, and gated.groups lists the groups."
        )
    return masks


def refuse_unfit(name: str, given: Any, units: int, least: int) -> torch.Tensor:
    """The mask as a tensor; refuses a mask that does not fit its channel group.

    Args:
        name: The channel group.
        units: Its number of units.
        least: The number of units that have to be kept.

    Raises:
        MaskError: A wrong shape, numbers other than 0 and 1, or too few units are left.
    """
    try:
        mask = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MaskError(
            f"{name}: found a {type(given).__name__} as its mask, expected {units} truth values. Pass a tensor or a "
            "list of them."
        ) from error
    if mask.shape != (units,):
        raise MaskError(
            f"{name}: found a mask of shape {tuple(mask.shape)}, expected {(units,)}, "
            "one entry for each unit of the channel group."
        )
    if mask.is_meta:
        return mask
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise MaskError(
            f"{name}: found a mask with numbers other than 0 and 1, expected a hard one. To choose by the logits, call "
            "gated.harden(budget); otherwise choose the kept units yourself, for example with mask > 0.5."
        )
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
    return mask
