"""Loading the data of a recipe's section ``data``."""

from __future__ import annotations

from collections.abc import Callable

import torch

from prunegate.data.batches import WHOLE, Data, part_of
from prunegate.data.image_folder import check_folder, open_folder
from prunegate.data.loaded import LoadedData, examples
from prunegate.data.meaning import Meaning
from prunegate.data.memory import check_memory, load_memory
from prunegate.data.own_sets import check_own, open_own
from prunegate.data.samples import Part
from prunegate.data.settings import MEMORY_KINDS, DataSettings
from prunegate.data.sources import Source
from prunegate.data.timm_sets import check_timm, open_timm
from prunegate.data.torchvision_sets import check_torchvision, open_torchvision
from prunegate.data.transforms import make_transforms, normalisation
from prunegate.data.unreadable import READING_ERRORS, UnreadableFiles
from prunegate.errors import DataError
from prunegate.own_code import is_own

_OF_FILES_ALONE = ("arguments", "train_split", "test_split", "num_classes", "channels", "transform", "workers")


def check_data(settings: DataSettings) -> None:
    """Check that the data of a section exists, without reading any image.

    Raises:
        DataError: The data is missing, or a key does not apply to this kind of data.
    """
    part_of(settings.batch_size, settings.batch_size, WHOLE, settings.mixup.enabled)
    if settings.labels == "any":
        _check_labels_of_any_form(settings)
    if settings.name in MEMORY_KINDS:
        fields = DataSettings.model_fields
        for key in _OF_FILES_ALONE:
            if getattr(settings, key) != fields[key].get_default(call_default_factory=True):
                raise DataError(
                    f"data.{key}: found {getattr(settings, key)!r}, expected none: {settings.name} is held in memory "
                    "and augmented by data.augment. The key is for images that are read from files, such as "
                    f"torchvision/FashionMNIST. Remove it."
                )
        check_memory(settings)
        return
    if settings.augment != "none":
        raise DataError(
            f"data.augment: found {settings.augment!r}, expected none: it is for {', '.join(MEMORY_KINDS)}, which are "
            f"in memory. Images of {settings.name} are augmented by timm's transforms. Set data.transform instead."
        )
    make_transforms(settings.transform, settings.channels or 3, settings.image_size)
    _kind(settings)[0](settings)


def _check_labels_of_any_form(settings: DataSettings) -> None:
    if not is_own(settings.name):
        raise DataError(
            f"data.labels: found any for {settings.name}, expected classes, which its samples have. Other "
            "labels need a data set of your own: data.name=module:function."
        )
    if settings.mixup.enabled or settings.num_classes is not None or settings.transform:
        key = "mixup" if settings.mixup.enabled else "num_classes" if settings.num_classes else "transform"
        raise DataError(
            f"data.{key}: does not apply with data.labels=any, as it is for images with classes. Remove it."
        )


def load_data(settings: DataSettings, seed: int = 0) -> Data:
    """Open a data set; reads sets in memory completely, and one image per part of the others.

    Args:
        seed: Selects the training samples under ``train_limit`` if they are read from files.

    Raises:
        DataError: As in `check_data`, or the data cannot be used.
    """
    check_data(settings)
    data = load_memory(settings) if settings.name in MEMORY_KINDS else _load_files(settings, seed)
    part_of(data.batch_size, data.num_train, WHOLE, settings.mixup.enabled)
    return data


def _load_files(settings: DataSettings, seed: int) -> LoadedData:
    source = _kind(settings)[1](settings)
    channels = settings.channels or 3
    classes = None if settings.labels == "any" else settings.num_classes or source.classes
    if classes is None and settings.labels == "classes":
        raise DataError(
            f"data.num_classes: is missing, and {settings.name} does not define its classes, expected their number. "
            "Set data.num_classes, or give the training set an attribute `classes` with their names; or "
            "data.labels=any if labels are not classes."
        )
    augmenting, plain = make_transforms(settings.transform, channels, settings.image_size)
    chosen = _chosen(len(source.train), settings.train_limit, seed)
    mode = "RGB" if channels == 3 else "L"
    train = Part("train", source.train, chosen, augmenting, mode, classes, bool(settings.transform))
    unaugmented = Part("train", source.train, chosen, plain, mode, classes, bool(settings.transform))
    test = Part("test", source.test, torch.arange(len(source.test)), plain, mode, classes, bool(settings.transform))
    unreadable = UnreadableFiles(settings.unreadable_limit)
    shapes = [tuple(examples(part, 1, unreadable).shape[1:]) for part in (unaugmented, test)]
    _check_shapes(settings, shapes)
    return LoadedData(
        train,
        unaugmented,
        test,
        (shapes[0][0], shapes[0][1], shapes[0][2]),
        classes,
        settings.batch_size,
        settings.mixup,
        settings.workers,
        unreadable,
        meaning=_meaning(settings, source, unaugmented),
    )


def _meaning(settings: DataSettings, source: Source, part: Part) -> Meaning:
    """The known facts about inputs and classes; nothing is known about users' own tensors, which are used unchanged."""
    names = source.class_names if len(source.class_names) == part.num_classes else ()
    try:
        is_tensor = isinstance(part.read(int(part.chosen[0]))[0], torch.Tensor)
    except READING_ERRORS:  # an unreadable image, but an image
        is_tensor = False
    if is_tensor:
        return Meaning(class_names=names)
    mean, deviation = normalisation(settings.transform, settings.channels or 3)
    return Meaning(255.0, mean, deviation, names)


def _kind(settings: DataSettings) -> tuple[Callable[[DataSettings], object], Callable[[DataSettings], Source]]:
    """The functions that check and open this kind of data."""
    if settings.name == "folder":
        return check_folder, open_folder
    if settings.name.startswith("torchvision/"):
        return check_torchvision, open_torchvision
    if settings.name.startswith("timm/"):
        return check_timm, open_timm
    return check_own, open_own


def _chosen(count: int, limit: int | None, seed: int) -> torch.Tensor:
    """The samples that are used, chosen at random, as the first ones in folders are of one class."""
    if limit is None or limit >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:limit].sort().values


def _check_shapes(settings: DataSettings, shapes: list[tuple[int, ...]]) -> None:
    if shapes[0] != shapes[1]:
        raise DataError(
            f"data.name: {settings.name}: found training samples of shape {shapes[0]} and test samples of {shapes[1]}, "
            "expected the same. Resize them in the data set."
        )
