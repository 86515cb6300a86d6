"""A folder with one subfolder of images per class, for training and for testing."""

from __future__ import annotations

from pathlib import Path

from prunegate.data.settings import DataSettings
from prunegate.data.sources import Source, check_same_classes, opened
from prunegate.errors import DataError

_TRAIN = ("train",)
_TEST = ("val", "validation", "test")


def check_folder(settings: DataSettings) -> tuple[Path, Path]:
    """The folders of training and test images; reads only the class names.

    Raises:
        DataError: They do not exist, or their classes differ.
    """
    if settings.arguments:
        raise DataError(f"data.arguments: found {settings.arguments}, expected none for a folder. Remove the key.")
    if settings.folder is None:
        raise DataError(
            "data.folder: is missing, expected a folder with train/<class>/ and val/<class>/. Set data.folder."
        )
    train = _part(settings.folder, "train", settings.train_split, _TRAIN)
    test = _part(settings.folder, "test", settings.test_split, _TEST)
    classes, of_test = (sorted(entry.name for entry in part.iterdir() if entry.is_dir()) for part in (train, test))
    if not classes:
        raise DataError(
            f"data.folder: {train}: found no subfolders, expected one for each class. Sort the images into them."
        )
    check_same_classes(classes, of_test, settings.folder)
    return train, test


def open_folder(settings: DataSettings) -> Source:
    """List all images.

    Raises:
        DataError: As `check_folder`, or a class without images.
    """
    from torchvision.datasets import ImageFolder

    parts = []
    for folder in check_folder(settings):
        try:
            parts.append(ImageFolder(folder))
        except OSError as error:  # torchvision's message names the empty classes
            raise DataError(
                f"data.folder: {folder}: {str(error).rstrip('. ')}. Expected images of every class. Add them or remove "
                "the class in both parts."
            ) from error
    return opened(parts[0], parts[1], settings.name)


def _part(folder: str, part: str, given: str | None, usual: tuple[str, ...]) -> Path:
    names = usual if given is None else (given,)
    for name in names:
        if (Path(folder) / name).is_dir():
            return Path(folder) / name
    raise DataError(
        f"data.folder: {folder}: found no folder {' or '.join(names)}, expected the {part} images of each class in a "
        f"subfolder of it. Make it, or name the right one in data.{part}_split."
    )
