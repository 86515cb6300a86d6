"""torchvision's data sets, by class name."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Literal

from prunegate.data.settings import DataSettings
from prunegate.data.sources import Source, opened
from prunegate.errors import DataError, nearest

_TEST_SPLITS = ("test", "val")
_NOT_YOURS = ("root", "transform", "target_transform", "transforms")


def check_torchvision(settings: DataSettings) -> None:
    """Raise DataError if the class does not exist or does not accept the settings; reads nothing."""
    result = _class_of(settings.name)
    told_by = _part_parameter(result, settings.name)
    for key in ("train_split", "test_split"):
        if told_by == "train" and getattr(settings, key) is not None:
            raise DataError(
                f"data.{key}: found {getattr(settings, key)!r}, expected none: {settings.name} only has the parts "
                "train and test. Remove the key."
            )
    ours = [*_NOT_YOURS, told_by]
    known = [name for name in _parameters(result) if name not in ours]
    for name in settings.arguments:
        if name not in known:
            near = nearest(name, known)
            raise DataError(
                f"data.arguments.{name}: {settings.name} has no such parameter, or it is set here. "
                + (f"Nearest: {', '.join(near)}." if near else f"Known: {', '.join(known)}.")
            )
    if settings.folder is None:
        raise DataError(f"data.folder: is missing, expected the root folder of {settings.name}. Set data.folder.")
    if not settings.arguments.get("download") and not Path(settings.folder).is_dir():
        raise DataError(
            f"data.folder: found no folder {settings.folder}, expected the root folder of {settings.name}. Set it, or "
            "data.arguments.download=true if the class can download."
        )


def open_torchvision(settings: DataSettings) -> Source:
    """Make both parts.

    Raises:
        DataError: As `check_torchvision`, or the class raises an error, mostly because its files are missing.
    """
    check_torchvision(settings)
    dataset = _class_of(settings.name)
    if _part_parameter(dataset, settings.name) == "train":
        return opened(_made(dataset, settings, train=True), _made(dataset, settings, train=False), settings.name)
    train = _made(dataset, settings, split=settings.train_split or "train")
    if settings.test_split is not None:
        return opened(train, _made(dataset, settings, split=settings.test_split), settings.name)
    try:
        test = _made(dataset, settings, split=_TEST_SPLITS[0])
    except DataError as error:
        if not isinstance(error.__cause__, ValueError):  # the error of classes for an unknown split
            raise
        test = _made(dataset, settings, split=_TEST_SPLITS[1])
    return opened(train, test, settings.name)


def _made(dataset: type, settings: DataSettings, **part: Any) -> Any:
    try:
        return dataset(root=settings.folder, **part, **settings.arguments)
    except Exception as error:  # missing files or packages, or invalid arguments, differently in each class
        raise DataError(
            f"data.name: {settings.name} with {part}: {type(error).__name__}: {str(error).rstrip('. ')}. Check "
            "data.folder, data.arguments (such as download), data.train_split and data.test_split."
        ) from error


def _class_of(name: str) -> type:
    from torchvision import datasets

    wanted = name.partition("/")[2]
    known = {each: getattr(datasets, each) for each in datasets.__all__ if inspect.isclass(getattr(datasets, each))}
    if wanted not in known:
        near = nearest(f"torchvision/{wanted}", [f"torchvision/{each}" for each in known])
        raise DataError(f"data.name: torchvision has no data set {wanted!r}. Nearest: {', '.join(near) or 'none'}.")
    made: type = known[wanted]
    return made


def _parameters(dataset: type) -> list[str]:
    """All parameters by name, including those of base classes that get ``**kwargs``."""
    names: list[str] = []
    for each in inspect.getmro(dataset):
        if "__init__" not in vars(each):
            continue
        parameters = list(inspect.signature(vars(each)["__init__"]).parameters.values())[1:]
        names += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return list(dict.fromkeys(names))


def _part_parameter(dataset: type, name: str) -> Literal["train", "split"]:
    # `train` first: EMNIST's `split` selects letters, and the `train` of its base class selects the part.
    parameters = _parameters(dataset)
    if "root" in parameters and "train" in parameters:
        return "train"
    if "root" in parameters and "split" in parameters:
        return "split"
    raise DataError(
        f"data.name: {name}: found no parameters root and train or split, expected them to select training or test "
        "images. Write a function of your own that returns the two sets, and name it as module:function."
    )
