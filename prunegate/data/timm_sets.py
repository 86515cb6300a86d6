"""timm's data sets by name, such as ``timm/folder`` or ``timm/hfds/<name>``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from prunegate.data.settings import DataSettings
from prunegate.data.sources import Source, check_same_classes, opened
from prunegate.errors import DataError

_NOT_YOURS = ("name", "root", "split", "input_img_mode", "transform", "target_transform", "load_bytes")


class ReaderImages:
    """The images of one of timm's readers.

    timm's own `ImageDataset` replaces an unreadable image by the next one and only logs it, also in testing, so that
    replacements could not be counted.
    """

    def __init__(self, reader: Any) -> None:
        self.reader = reader
        self.classes = list(getattr(reader, "class_to_idx", None) or ())
        # Paths for messages, if the reader has them.
        self.samples = getattr(reader, "samples", None)

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        file, label, *_ = self.reader[index]
        with file:
            image = Image.open(file)
            image.load()  # before the file is closed
        return image, label


def check_timm(settings: DataSettings) -> None:
    """Raise DataError if an argument is reserved or the folder is missing; reads nothing."""
    for name in settings.arguments:
        if name in _NOT_YOURS:
            raise DataError(
                f"data.arguments.{name}: this argument of timm's create_dataset is set by prunegate. "
                "See data.folder, data.train_split, data.test_split and data.channels."
            )
    if settings.folder is not None and not settings.arguments.get("download") and not Path(settings.folder).exists():
        raise DataError(f"data.folder: found nothing at {settings.folder}, expected a folder or archive. Set it.")


def open_timm(settings: DataSettings) -> Source:
    """Make both parts.

    Raises:
        DataError: As `check_timm`, or timm does not know the name or finds no images.
    """
    check_timm(settings)
    splits = settings.train_split or "train", settings.test_split or "validation"
    train, test = (_made(settings, split) for split in splits)
    roots = [getattr(getattr(part, "reader", None), "root", None) for part in (train, test)]
    if roots[0] is not None and roots[0] == roots[1]:
        # timm uses the whole folder if there is no subfolder with the split's name.
        raise DataError(
            f"data.folder: found the same images in {roots[0]} for {splits[0]} and {splits[1]}, expected a part for "
            "each. The model would be tested on what it was trained on. Name the parts in data.train_split and "
            "data.test_split."
        )
    if isinstance(train, ReaderImages) and isinstance(test, ReaderImages) and train.classes and test.classes:
        check_same_classes(train.classes, test.classes, str(settings.folder))
    return opened(train, test, settings.name)


def _made(settings: DataSettings, split: str) -> Any:
    from timm.data import ImageDataset, create_dataset

    name = settings.name.partition("/")[2]
    try:
        made = create_dataset(name, root=settings.folder, split=split, **settings.arguments)
    except Exception as error:  # timm uses assertions, and its readers may raise anything
        raise DataError(
            f"data.name: {settings.name}, split {split!r}: {type(error).__name__}: {str(error).rstrip('. ')}. Check "
            "the name, data.folder and data.arguments against timm.data.create_dataset."
        ) from error
    return ReaderImages(made.reader) if isinstance(made, ImageDataset) else made
