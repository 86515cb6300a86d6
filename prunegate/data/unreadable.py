"""Files that cannot be read: each is named once, and too many of them stop the run."""

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

# What a missing, truncated or foreign file raises, by PIL's many decoders, whatever the file is.
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
    """One file and why it cannot be read; small, for it travels from the workers with the batch."""

    file: str
    reason: str


class UnreadableFiles:
    """The files that could not be read so far, over all workers and epochs."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.files: dict[str, str] = {}

    def note(self, results: Iterable[Unreadable]) -> None:
        """Name the new ones in the log.

        Raises:
            DataError: There are more than the limit.
        """
        for file, reason in results:
            if file not in self.files:
                self.files[file] = reason
                logger.warning("%s: cannot be read and is left out: %s", file, reason)
        if len(self.files) > self.limit:
            some = [f"  {file}: {reason}" for file, reason in list(self.files.items())[:_NAMED]]
            more = [f"  and {len(self.files) - _NAMED} more"] if len(self.files) > _NAMED else []
            raise DataError(
                f"data: found {len(self.files)} files that cannot be read, expected {self.limit} at most. "
                "Remove or replace them, or raise data.unreadable_limit.\n" + "\n".join(some + more)
            )


@contextmanager
def whole_images_only() -> Iterator[None]:
    """Within the block PIL raises for a truncated image, whatever it was told before, instead of filling it up."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def file_of(dataset: Any, index: int, part: str) -> str:
    """The path of a sample, where the data set tells it, and else its number within ``part``."""
    at = index
    while isinstance(dataset, Subset):
        dataset, at = dataset.dataset, dataset.indices[at]
    # As torchvision's data sets keep them; the first of a pair where the class stands beside.
    for attribute in ("samples", "_samples", "_image_files", "images", "_images"):
        listed = getattr(dataset, attribute, None)
        if isinstance(listed, list) and at < len(listed):
            entry = listed[at][0] if isinstance(listed[at], tuple) else listed[at]
            if isinstance(entry, str) or hasattr(entry, "__fspath__"):
                return str(entry)
    return f"{part} sample {index}"
