"""What numbers mean that go into a model and come out of it: for those who get the model without the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Meaning:
    """How pixels become inputs, and what classes are called; what is not known is empty.

    An input is ``(pixel / largest_pixel - mean) / deviation`` for each channel.

    Attributes:
        largest_pixel: What the largest pixel of the source is: 255, or 16 for scikit-learn's digits.
        mean: Of each channel, in shares of the largest pixel.
        deviation: The same.
        class_names: In the order of class indices.
    """

    largest_pixel: float | None = None
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    class_names: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """What is known, ready for JSON."""
        known: dict[str, Any] = {}
        if self.mean and self.deviation:
            known |= {"largest_pixel": self.largest_pixel, "mean": list(self.mean), "deviation": list(self.deviation)}
        return known | ({"class_names": list(self.class_names)} if self.class_names else {})
