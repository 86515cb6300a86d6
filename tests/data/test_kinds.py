"""Data sets by name: where they are found, and errors if they are not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prunegate.data import DataSettings, check_data, load_data
from prunegate.errors import DataError
from tests.data.pictures import CLASSES, folder_data, folder_settings, image_folder
from tests.data.test_memory import fashion_folder

OWN = "tests.data.own_sets_for_tests"


def settings(name: str, **given: Any) -> DataSettings:
    return DataSettings(**{"name": name, "batch_size": 4, "image_size": 8, **given})


def refused(given: DataSettings, *texts: str, by_check: bool = True) -> None:
    """Both refuse, or only loading does where checking would have to open the data set."""
    if by_check:
        with pytest.raises(DataError) as caught:
            check_data(given)
        assert all(text in str(caught.value) for text in texts), str(caught.value)
    else:
        check_data(given)
    with pytest.raises(DataError) as caught:
        load_data(given)
    assert all(text in str(caught.value) for text in texts), str(caught.value)


# --- folders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("test", ["val", "validation", "test"])
@pytest.mark.parametrize("channels", [1, 3])
def test_folder_holds_classes_by_name(tmp_path: Path, test: str, channels: int) -> None:
    data = folder_data(image_folder(tmp_path, test), channels=channels)
    assert (data.shape, data.num_classes, data.steps_per_epoch) == ((channels, 8, 8), 3, 5)
    batches = list(data.test_batches())
    assert torch.cat([batch.labels for batch in batches]).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for batch in data.train_batches(0, 0):
        assert torch.equal(batch.labels, batch.indices // 7)
        assert batch.inputs.dtype == torch.float32
        assert batch.inputs.shape == (4, channels, 8, 8)


def test_pixels_are_those_of_the_file(tmp_path: Path) -> None:
    image_folder(tmp_path, side=8)
    given = {"crop_pct": 1.0, "mean": [0.5, 0.25, 0.0], "std": [0.5, 1.0, 2.0]}
    data = folder_data(tmp_path, transform=given)
    pixels = np.asarray(Image.open(tmp_path / "val" / "bee" / "2.png")).transpose(2, 0, 1) / 255
    expected = (pixels - np.array([0.5, 0.25, 0.0])[:, None, None]) / np.array([0.5, 1.0, 2.0])[:, None, None]
    found = next(iter(data.test_batches())).inputs[6]
    assert np.abs(found.numpy() - expected).max() < 1e-5


def test_split_names_a_folder(tmp_path: Path) -> None:
    image_folder(tmp_path)
    (tmp_path / "train").rename(tmp_path / "learn")
    assert folder_data(tmp_path, train_split="learn", test_split="learn").steps_per_epoch == 5
    refused(
        folder_settings(tmp_path), "found no folder train, expected the train images", "or name the right one in data."
    )


def test_train_limit_takes_some_of_all_classes(tmp_path: Path) -> None:
    image_folder(tmp_path)
    given = folder_settings(tmp_path, train_limit=9, batch_size=9)
    (batch,) = load_data(given).train_batches(0, 0)
    assert len(batch.indices.unique()) == 9
    assert set(batch.labels.tolist()) == {0, 1, 2}
    (again,) = load_data(given).train_batches(1, 3)
    assert set(again.indices.tolist()) == set(batch.indices.tolist())
    (other,) = load_data(given, seed=1).train_batches(0, 0)
    assert set(other.indices.tolist()) != set(batch.indices.tolist())


def test_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    refused(folder_settings(tmp_path, arguments={"x": 1}), "data.arguments: found {'x': 1}, expected none for a folder")
    refused(DataSettings(name="folder"), "data.folder: is missing, expected a folder with train/<class>/")
    refused(folder_settings(tmp_path / "nil"), "found no folder train, expected the train images of each class")
    (tmp_path / "train").mkdir()
    refused(folder_settings(tmp_path), "found no folder val or validation or test, expected the test images")
    (tmp_path / "val").mkdir()
    refused(folder_settings(tmp_path), "found no subfolders, expected one for each class")


def test_classes_must_agree(tmp_path: Path) -> None:
    image_folder(tmp_path)
    (tmp_path / "val" / "cat").rename(tmp_path / "val" / "cats")
    texts = "found 3 classes for training and 3 for testing, cat in the train part alone and cats in the test part"
    refused(folder_settings(tmp_path), texts)
    refused(folder_settings(tmp_path, name="timm/folder"), texts, by_check=False)


def test_empty_class_is_named(tmp_path: Path) -> None:
    image_folder(tmp_path)
    shutil.rmtree(tmp_path / "train" / "bee")
    (tmp_path / "train" / "bee").mkdir()
    refused(folder_settings(tmp_path), "no valid file for the classes bee", by_check=False)


# --- torchvision --------------------------------------------------------------------------------------------------


def test_torchvision_class_with_train(tmp_path: Path) -> None:
    fashion_folder(tmp_path / "FashionMNIST" / "raw", packed=False)
    data = load_data(settings("torchvision/FashionMNIST", folder=str(tmp_path), channels=1))
    assert (data.shape, data.num_classes, data.steps_per_epoch) == ((1, 8, 8), 10, 10)
    assert torch.cat([batch.labels for batch in data.test_batches()]).tolist() == [i % 10 for i in range(20)]


def test_emnists_parts_are_told_by_the_train_of_its_base(tmp_path: Path) -> None:
    fashion_folder(tmp_path / "EMNIST" / "raw", packed=False)
    for path in (tmp_path / "EMNIST" / "raw").iterdir():
        path.rename(path.with_name(path.name.replace("t10k", "test").replace("train-", "emnist-digits-train-")))
    for path in (tmp_path / "EMNIST" / "raw").glob("test-*"):
        path.rename(path.with_name(f"emnist-digits-{path.name}"))
    arguments = {"split": "digits"}
    data = load_data(settings("torchvision/EMNIST", folder=str(tmp_path), arguments=arguments, channels=1))
    assert (data.num_classes, data.steps_per_epoch) == (10, 10)
    assert sum(len(batch.labels) for batch in data.test_batches()) == 20


@pytest.mark.parametrize("given", [None, "val"])
def test_torchvision_class_with_splits(tmp_path: Path, given: str | None) -> None:
    """Imagenette has train and val, and no test."""
    root = tmp_path / "imagenette2-160"
    for part in ("train", "val"):
        for name in ("n01440764", "n02102040"):
            (root / part / name).mkdir(parents=True)
            Image.new("RGB", (9, 9), "red").save(root / part / name / f"{part}.JPEG")
    named = settings(
        "torchvision/Imagenette", folder=str(tmp_path), arguments={"size": "160px"}, num_classes=10, test_split=given
    )
    # Its list of classes is of its ten folders; the two here are enough.
    data = load_data(named)
    assert data.num_classes == 10
    assert len(next(iter(data.test_batches())).labels) == 2


@pytest.mark.parametrize(
    ("name", "given", "texts"),
    [
        ("FashionMnist", {}, ["has no data set 'FashionMnist'", "Nearest: torchvision/FashionMNIST"]),
        ("wrap_dataset_for_transforms_v2", {}, ["has no data set"]),
        ("FakeData", {}, ["found no parameters root and train or split", "module:function"]),
        ("SBU", {}, ["found no parameters root and train or split"]),
        ("CIFAR10", {}, ["data.folder: is missing"]),
        ("CIFAR10", {"folder": "/nil"}, ["found no folder /nil", "data.arguments.download=true"]),
        ("CIFAR10", {"arguments": {"downlod": True}}, ["data.arguments.downlod", "Nearest: download"]),
        ("CIFAR10", {"arguments": {"train": True}}, ["data.arguments.train", "or it is set here"]),
        (
            "CIFAR10",
            {"test_split": "val"},
            ["data.test_split: found 'val', expected none", "only has the parts train and test"],
        ),
        ("ImageNet", {"arguments": {"root": "x"}}, ["data.arguments.root", "or it is set here"]),
    ],
)
def test_torchvision_name_or_argument_that_is_none(name: str, given: dict[str, Any], texts: list[str]) -> None:
    refused(settings(f"torchvision/{name}", **given), *texts)


def test_torchvision_files_that_are_not_there(tmp_path: Path) -> None:
    texts = ["torchvision/CIFAR10 with {'train': True}: RuntimeError: Dataset not found", "data.arguments (such as dow"]
    refused(settings("torchvision/CIFAR10", folder=str(tmp_path)), *texts, by_check=False)
    texts = ["torchvision/SVHN with {'split': 'nil'}: ValueError: Unknown value 'nil' for argument split"]
    refused(settings("torchvision/SVHN", folder=str(tmp_path), train_split="nil"), *texts, by_check=False)


# --- timm ---------------------------------------------------------------------------------------------------------


def test_timm_folder_holds_the_classes(tmp_path: Path) -> None:
    data = load_data(settings("timm/folder", folder=str(image_folder(tmp_path, "validation"))))
    assert data.num_classes == len(CLASSES)
    assert torch.cat([batch.labels for batch in data.test_batches()]).tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_timm_parts_must_be_two(tmp_path: Path) -> None:
    image_folder(tmp_path)
    given = settings("timm/folder", folder=str(tmp_path / "train"))
    refused(given, "found the same images in", "tested on what it was trained on", by_check=False)


def test_timm_names_and_arguments_that_are_none(tmp_path: Path) -> None:
    refused(settings("timm/folder", folder="/nil"), "data.folder: found nothing at /nil")
    refused(
        settings("timm/folder", arguments={"split": "x"}),
        "data.arguments.split: this argument of timm's create_dataset is set",
    )
    refused(settings("timm/torch/nil", folder=str(tmp_path)), "Unknown torchvision dataset nil", by_check=False)
    refused(settings("timm/folder", folder=str(tmp_path)), "Found 0 images in subfolders", by_check=False)


# --- the user's own -----------------------------------------------------------------------------------------------


def test_own_tensors_are_taken_as_they_are() -> None:
    data = load_data(settings(f"{OWN}:tensors", arguments={"count": 9}))
    assert (data.shape, data.num_classes, data.steps_per_epoch) == ((2, 3, 5), 2, 2)
    (batch,) = data.test_batches()
    assert torch.equal(batch.inputs.amax((1, 2, 3)).floor(), torch.arange(5.0))
    assert torch.equal(batch.labels, torch.arange(5) % 2)


def test_own_images_are_transformed() -> None:
    assert load_data(settings(f"{OWN}:grey")).shape == (3, 8, 8)
    assert load_data(settings(f"{OWN}:grey", channels=1, image_size=9)).shape == (1, 9, 9)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("raises", f"{OWN}:broken: raised KeyError: 'no such thing'"),
        ("one", "expected a training set and a test set"),
        ("three", "returned 3 values, expected a training set and a test set"),
        ("stream", "found a list_iterator as the training set, expected one with a length"),
        ("empty", "found an empty training set"),
        ("classless", "data.num_classes: is missing"),
        ("label", "train sample 0: found label 2, expected a class index from 0 to 1"),
        ("text", "train sample 0: found label 'cat', expected a class index"),
        ("bytes", "train sample 0: found torch.uint8 of shape (1, 4, 4), expected a PIL image or a float tensor"),
        ("array", "train sample 0: found float64 of shape (4, 4), expected a PIL image or a float tensor"),
        ("single", "train sample 0: raised IndexError: tuple index out of range"),
        ("shapes", "found training samples of shape (1, 4, 4) and test samples of (1, 4, 5), expected the same"),
    ],
)
def test_own_code_that_gives_something_else(kind: str, text: str) -> None:
    refused(settings(f"{OWN}:broken", arguments={"kind": kind}), text, by_check=False)


def test_own_code_that_cannot_be_used() -> None:
    refused(settings("no_such_module:make"), "data.name: 'no_such_module:make' cannot be imported from")
    refused(settings(f"{OWN}:number"), "is a int, expected a function or class")
    refused(settings(f"{OWN}:tensors", folder="x"), "data.folder: ", "it only gets data.arguments")
    refused(settings(f"{OWN}:tensors", test_split="x"), "data.test_split: ", "it only gets data.arguments")
    transform = settings(f"{OWN}:tensors", transform={"hflip": 0.0})
    refused(transform, "data.transform: train sample 0: found a tensor", "Remove data.transform", by_check=False)


def test_samples_of_several_shapes_are_refused() -> None:
    from prunegate.data.samples import Sample, collated

    with pytest.raises(DataError, match=r"found samples of shapes \(1, 2, 2\), \(1, 2, 3\), expected all alike"):
        collated([Sample(torch.zeros(1, 2, side), 0, 0, ()) for side in (2, 3)])


# --- keys that belong to the other kinds --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("arguments", {"x": 1}), ("train_split", "a"), ("test_split", "a"), ("num_classes", 10), ("channels", 1),
        ("transform", {"hflip": 0.5}), ("workers", 2),
    ],
)  # fmt: skip
def test_key_of_files_alone_is_refused_for_data_in_memory(key: str, value: Any) -> None:
    refused(settings("digits", **{key: value}), f"data.{key}: found {value!r}, expected none: digits is held in memory")


def test_shifts_are_for_data_in_memory(tmp_path: Path) -> None:
    image_folder(tmp_path)
    texts = "data.augment: found 'shift', expected none: it is for digits, fashion_mnist, cifar10", "Set data.transform"
    refused(folder_settings(tmp_path, augment="shift"), *texts)
