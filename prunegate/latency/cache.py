"""Measured surfaces in the user's cache folder, one file for each machine and way of running."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from prunegate.costs.latency_cost import Profile, Surface
from prunegate.files import replacing

logger = logging.getLogger(__name__)

# Raised when measured values change their meaning.
_FORMAT = 2
# A longer time of one operation is a damaged number.
_MOST_MS = 1e6


def environment(device: torch.device, threads: int, precision: str) -> dict[str, str]:
    """What measured times depend on besides the operation."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "format": str(_FORMAT),
        "device": f"{device.type}: {name}",
        "torch": torch.__version__,
        "threads": str(threads),
        "precision": precision,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return f"{next(names, platform.machine())}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


class Cache:
    """Surfaces by the signature of their operation."""

    def __init__(self, environment: Mapping[str, str], folder: Path | None = None) -> None:
        key = hashlib.sha256(json.dumps(environment, sort_keys=True).encode()).hexdigest()[:16]
        self.path = (folder or _folder()) / f"{key}.json"
        self.environment = dict(environment)
        self._is_damaged = False

    def read(self) -> dict[str, Surface]:
        """All surfaces measured in this environment; none if the file is damaged."""
        try:
            document = json.loads(self.path.read_text())
            return {key: surface_of(value) for key, value in document["surfaces"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            if not self._is_damaged:
                logger.warning("%s: not a table of latencies; it is measured again", self.path)
            self._is_damaged = True
            return {}

    def add(self, surfaces: Mapping[str, Surface]) -> None:
        """Write further surfaces; other processes may do the same.

        Raises:
            OSError: The folder cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"):
            known = {**self.read(), **surfaces}
            document = {
                "environment": self.environment,
                "surfaces": {key: described(surface) for key, surface in known.items()},
            }
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps(document))


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "prunegate" / "latency"


def described(surface: Surface) -> dict[str, Any]:
    """A surface as JSON-ready data."""
    return {
        "widths": surface.widths,
        "milliseconds": surface.milliseconds,
        "profiles": [None if p is None else [p.block, list(p.shares)] for p in surface.profiles],
    }


def surface_of(data: Mapping[str, Any]) -> Surface:
    """The reverse of `described`.

    Raises:
        ValueError: It does not describe a surface.
    """
    profiles = [None if p is None else Profile(int(p[0]), tuple(map(float, p[1]))) for p in data["profiles"]]
    widths = tuple(tuple(map(int, one)) for one in data["widths"])
    milliseconds = tuple(tuple(map(float, row)) for row in data["milliseconds"])
    surface = Surface(widths, milliseconds, tuple(profiles))
    _check(surface)
    return surface


def _check(surface: Surface) -> None:
    lengths = [len(one) for one in surface.widths]
    rows, columns = (*lengths, 1, 1)[:2] if lengths else (0, 0)
    fits = len(surface.milliseconds) == rows and all(len(row) == columns for row in surface.milliseconds)
    numbers = [number for row in surface.milliseconds for number in row]
    numbers += [share for p in surface.profiles if p is not None for share in p.shares]
    blocks = all(p is None or (p.block > 1 and len(p.shares) == p.block) for p in surface.profiles)
    if not (0 < len(lengths) <= 2 and fits and blocks and len(surface.profiles) == len(lengths)):
        raise ValueError("a surface whose sizes do not fit each other")
    if not all(math.isfinite(number) and 0.0 <= number <= _MOST_MS for number in numbers):
        raise ValueError("a surface with times that none can be")
