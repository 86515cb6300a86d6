"""The common form of opened data sets that are read from files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Subset

from prunegate.errors import DataError


@dataclass(frozen=True)
class Source:
    """The training and the test set, map-style, and the classes that they define.

    Attributes:
        classes: Number of classes; None if unknown.
        class_names: In the order of indices, if these are strings or numbers.
    """

    train: Any
    test: Any
    classes: int | None
    class_names: tuple[str, ...] = ()


def opened(train: Any, test: Any, name: str) -> Source:
    """The two sets as a source, with the classes defined by the training set.

    Raises:
        DataError: One is not a map-style data set, or is empty.
    """
    for part, dataset in (("training", train), ("test", test)):
        if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            raise DataError(
                f"data.name: {name}: found a {type(dataset).__name__} as the {part} set, expected one with a length "
                "and samples by index (map-style). Streams cannot be resumed from a position. Use such a data set."
            )
        if not len(dataset):
            raise DataError(f"data.name: {name}: found an empty {part} set, expected samples. Check data.folder.")
    holder = train
    while isinstance(holder, Subset):
        holder = holder.dataset
    classes = getattr(holder, "classes", None)
    if not isinstance(classes, Sequence) or not len(classes):
        return Source(train, test, None)
    named = not isinstance(classes, str) and all(isinstance(name, (str, int)) for name in classes)
    return Source(train, test, len(classes), tuple(map(str, classes)) if named else ())


def check_same_classes(train: Sequence[str], test: Sequence[str], where: str) -> None:
    """Raise DataError if the parts have different classes, whose indices would have different meanings."""
    if list(train) == list(test):
        return
    only = {"train": sorted(set(train) - set(test)), "test": sorted(set(test) - set(train))}
    told = " and ".join(f"{', '.join(names[:5])} in the {part} part alone" for part, names in only.items() if names)
    raise DataError(
        f"data.folder: {where}: found {len(train)} classes for training and {len(test)} for testing, "
        f"{told or 'in another order'}, expected the same. Classes are numbered by name. Make the subfolders agree."
    )
