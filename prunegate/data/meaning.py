"""The meaning of a model's inputs and outputs, for users who get the model without the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Meaning:
    """How pixels become inputs, and the class names; unknown fields are empty.

    An input is ``(pixel / largest_pixel - mean) / deviation`` for each channel.

    Attributes:
        largest_pixel: Largest pixel value of the source: 255, or 16 for scikit-learn's digits.
        mean: Mean of each channel, as a fraction of the largest pixel.
        deviation: Standard deviation of each channel, as a fraction of the largest pixel.
        class_names: In the order of class indices.
    """

    largest_pixel: float | None = None
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    class_names: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The known fields as JSON-ready data."""
        known: dict[str, Any] = {}
        if self.mean and self.deviation:
            known |= {"largest_pixel": self.largest_pixel, "mean": list(self.mean), "deviation": list(self.deviation)}
        return known | ({"class_names": list(self.class_names)} if self.class_names else {})
