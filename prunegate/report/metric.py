"""Name and format of a model's score: accuracy, or a metric of the user's own."""

from __future__ import annotations

# The default metric of records and comparisons.
ACCURACY = "accuracy"


def metric_name(given: str | None) -> str:
    """The name of ``module:function`` without the module, or accuracy."""
    return ACCURACY if given is None else given.rpartition(":")[2]


def metric_text(value: float, name: str = ACCURACY) -> str:
    """``91.20%`` for accuracy, the number itself for any other."""
    return f"{value:.2%}" if name == ACCURACY else f"{value:.4g}"
