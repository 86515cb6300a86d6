"""Random masks, what is noted of a wrapped model, and figures as JSON holds them."""

from __future__ import annotations

import math
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def masks_of(groups: Any, density: float) -> Mapping[str, torch.Tensor]:
    """Keep this share of the units of every group, at random, one at least."""
    masks = {}
    for group in groups:
        mask = torch.zeros(group.num_units, dtype=torch.bool)
        mask[torch.randperm(group.num_units)[: max(1, round(density * group.num_units))]] = True
        masks[group.name] = mask
    return masks


def pinned_of(groups: Any) -> list[tuple[str, int]]:
    """The three commonest reasons, with the channels they hold."""
    channels: Counter[str] = Counter()
    for group in groups:
        channels[group.pin.reason[:100]] += group.num_units
    return channels.most_common(3)


def revision() -> str:
    """The commit of the library that is measured, if it is in a checkout."""
    import prunegate  # only where it is measured: other libraries' rows hold their own memory and time

    command = ["git", "-C", str(Path(prunegate.__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def finite(value: float) -> float | None:
    """JSON has no infinity: null stands for outputs that cannot be compared."""
    return value if math.isfinite(value) else None
