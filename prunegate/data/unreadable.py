"""Unreadable files: each is logged once, and too many of them stop the run."""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from PIL import Image, ImageFile
from torch.utils.data import Subset

from prunegate.errors import DataError

logger = logging.getLogger(__name__)

# The errors that PIL's decoders raise for missing, truncated or foreign files.
READING_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_NAMED = 5


class Unreadable(NamedTuple):
    """One file and why it cannot be read; small, as workers send it with the batch."""

    file: str
    reason: str


class UnreadableFiles:
    """The files that could not be read so far, over all workers and epochs."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.files: dict[str, str] = {}

    def note(self, unreadable: Iterable[Unreadable]) -> None:
        """Log the new ones.

        Raises:
            DataError: There are more than the limit.
        """
        for file, reason in unreadable:
            if file not in self.files:
                self.files[file] = reason
                logger.warning("%s: cannot be read and is skipped: %s", file, reason)
        if len(self.files) > self.limit:
            some = [f"  {file}: {reason}" for file, reason in list(self.files.items())[:_NAMED]]
            more = [f"  and {len(self.files) - _NAMED} more"] if len(self.files) > _NAMED else []
            raise DataError(
                f"data: found {len(self.files)} files that cannot be read, expected at most {self.limit}. "
                "Remove or replace them, or raise data.unreadable_limit.\n" + "\n".join(some + more)
            )


@contextmanager
def whole_images_only() -> Iterator[None]:
    """Within the block, PIL raises an error for truncated images instead of padding them, whatever its settings."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def file_of(dataset: Any, index: int, part: str) -> str:
    """The path of a sample if the data set provides it, otherwise its index within ``part``."""
    at = index
    while isinstance(dataset, Subset):
        dataset, at = dataset.dataset, dataset.indices[at]
    # The attributes of torchvision's data sets; the path is first in pairs with the class.
    for attribute in ("samples", "_samples", "_image_files", "images", "_images"):
        listed = getattr(dataset, attribute, None)
        if isinstance(listed, list) and at < len(listed):
            entry = listed[at][0] if isinstance(listed[at], tuple) else listed[at]
            if isinstance(entry, str) or hasattr(entry, "__fspath__"):
                return str(entry)
    return f"{part} sample {index}"
