"""Checks that users' values are numbers."""

from __future__ import annotations

import math
import numbers
from typing import Any, TypeGuard


def is_number(value: Any) -> TypeGuard[float]:
    """A finite real number of Python or numpy; True and False do not count."""
    return not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(value)


def is_count(value: Any) -> TypeGuard[float]:
    """A whole number of at least 0; 10.0 is one."""
    return is_number(value) and value >= 0 and value == int(value)
