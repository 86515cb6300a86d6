"""Data sets in memory: contents, order, augmentation, and errors if they are missing."""

from __future__ import annotations

import gzip
import importlib.util
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from prunegate.data import DataSettings, augmented, check_data, fashion_mnist, load_data
from prunegate.errors import DataError


def settings(**given: Any) -> DataSettings:
    return DataSettings(**{"name": "digits", **given})


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">I{values.ndim}I", 0x0800 + values.ndim, *values.shape) + values.tobytes()


def fashion_folder(folder: Path, packed: bool = True) -> Path:
    """Forty training and twenty test images of random pixels under Fashion-MNIST's file names."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for name, values in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
            else:
                (folder / name).write_bytes(idx(values))
    return folder


def test_digits_are_split_alike_for_every_class() -> None:
    found = load_data(settings(image_size=16))
    assert found.shape == (1, 16, 16)
    assert (len(found.train_labels), len(found.test_labels), found.num_classes) == (1442, 355, 10)
    share = torch.bincount(found.test_labels) / torch.bincount(torch.cat([found.train_labels, found.test_labels]))
    assert share.min() > 0.19
    assert share.max() < 0.21


def test_digits_hold_every_image_once_and_no_test_image_is_trained_on() -> None:
    from sklearn.datasets import load_digits

    found = load_data(settings(image_size=8))
    everything = torch.cat([found.train_images, found.test_images]).flatten(1)
    original = torch.from_numpy(load_digits().images).float().flatten(1)
    assert len(everything) == len(original)
    # Normalising keeps the order of pixel values, so sorting rows by their text matches them up.
    scale = original.std() / everything.std()
    restored = (everything * scale + (original.mean() - everything.mean() * scale)).round().int().tolist()
    assert sorted(restored) == sorted(original.int().tolist())


def test_images_are_normalised_by_the_training_images() -> None:
    found = load_data(settings())
    assert abs(float(found.train_images.mean())) < 1e-4
    assert abs(float(found.train_images.std()) - 1) < 1e-4
    assert found.train_images.dtype == torch.float32
    assert 0 < abs(float(found.test_images.mean())) < 0.1


def test_train_limit_keeps_the_classes() -> None:
    found = load_data(settings(train_limit=3, batch_size=2))
    assert len(found.train_labels) == 3
    assert (found.num_classes, found.steps_per_epoch) == (10, 1)
    assert len(found.test_labels) == 355


@pytest.mark.parametrize("augment", ["none", "shift", "shift_flip"])
def test_batches_depend_on_seed_and_epoch_alone(augment: str) -> None:
    found = load_data(settings(image_size=8, augment=augment, train_limit=300))

    def batches(seed: int, epoch: int) -> torch.Tensor:
        torch.rand(3)  # the global random state must not matter
        return torch.cat([images for images, *_ in found.train_batches(seed, epoch)])

    assert torch.equal(batches(1, 2), batches(1, 2))
    assert not torch.equal(batches(1, 2), batches(1, 3))
    assert not torch.equal(batches(1, 2), batches(2, 2))


def test_epoch_holds_each_image_at_most_once_with_its_label() -> None:
    found = load_data(settings(image_size=8, train_limit=150, batch_size=64))
    batches = list(found.train_batches(0, 0))
    assert [len(labels) for _, labels, _ in batches] == [64, 64]
    assert len(batches) == found.steps_per_epoch
    known = {
        image.numpy().tobytes(): int(label) for image, label in zip(found.train_images, found.train_labels, strict=True)
    }
    seen = [
        (image.numpy().tobytes(), int(label))
        for images, labels, _ in batches
        for image, label in zip(images, labels, strict=True)
    ]
    assert len({image for image, _ in seen}) == 128
    assert all(known[image] == label for image, label in seen)


def test_set_smaller_than_a_batch_gives_one_batch() -> None:
    found = load_data(settings(image_size=8, train_limit=10, batch_size=64))
    assert [len(labels) for _, labels, _ in found.train_batches(0, 0)] == [10]


def test_test_batches_are_all_test_images_in_order() -> None:
    found = load_data(settings(image_size=8))
    images, labels, indices = (torch.cat(parts) for parts in zip(*found.test_batches(), strict=True))
    assert torch.equal(images, found.test_images)
    assert torch.equal(labels, found.test_labels)
    assert torch.equal(indices, torch.arange(355))


@pytest.mark.parametrize("kind", ["shift", "shift_flip"])
def test_augmented_image_is_a_shift_of_the_original(kind: str) -> None:
    images = torch.randn(64, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    found = augmented(images, kind, torch.Generator().manual_seed(1))
    assert found.shape == images.shape
    padded = F.pad(images, [2] * 4, mode="replicate")
    mirrored = shifted = 0
    for before, after in zip(padded, found, strict=True):
        moves = [(y, x) for y in range(5) for x in range(5)]
        plain = any(torch.equal(before[:, y : y + 16, x : x + 16], after) for y, x in moves)
        flipped = any(torch.equal(before[:, y : y + 16, x : x + 16].flip(2), after) for y, x in moves)
        assert plain != flipped
        mirrored += flipped
        shifted += not torch.equal(before[:, 2:18, 2:18], after)
    assert shifted > 48  # 24 of 25 shifts move the image
    assert (16 < mirrored < 48) if kind == "shift_flip" else mirrored == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_augmented_batch_is_not_taken_for_channels_last(channels: int) -> None:
    images = augmented(torch.rand(4, channels, 8, 8), "shift_flip", torch.Generator().manual_seed(0))
    # What a convolution makes of it tells which layout torch saw.
    made = torch.nn.Conv2d(channels, 5, 3)(images)
    assert made.stride() == torch.empty(made.shape).stride()


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_is_read_from_its_folder(tmp_path: Path, packed: bool) -> None:
    folder = fashion_folder(tmp_path / "files", packed)
    found = load_data(settings(name="fashion_mnist", folder=str(folder), image_size=28))
    assert found.shape == (1, 28, 28)
    assert found.train_labels.tolist() == [i % 10 for i in range(40)]
    assert len(found.test_images) == 20
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8).astype(np.float64)
    expected = (pixels - pixels.mean()) / pixels.std(ddof=1)
    assert np.abs(found.train_images[:, 0].numpy() - expected).max() < 1e-4


def test_fashion_mnist_is_found_below_torchvisions_root(tmp_path: Path) -> None:
    fashion_folder(tmp_path / "FashionMNIST" / "raw")
    found = load_data(settings(name="fashion_mnist", folder=str(tmp_path), image_size=14))
    assert found.shape == (1, 14, 14)


@pytest.mark.parametrize("given", ["nowhere", None])
def test_missing_folder_names_the_places_and_the_remedies(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    places = ("no/such/place", "nor/here")
    monkeypatch.setattr(fashion_mnist, "_FASHION_FOLDERS", places)
    with pytest.raises(DataError) as caught:
        check_data(settings(name="fashion_mnist", folder=given))
    text = str(caught.value)
    assert text.startswith("data.folder: found no Fashion-MNIST in ")
    assert all(place in text for place in ([given] if given else places))
    assert "apt-get install dataset-fashion-mnist" in text
    assert "FashionMNIST('data', download=True)" in text


def test_incomplete_folder_is_missing(tmp_path: Path) -> None:
    folder = fashion_folder(tmp_path)
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="found no Fashion-MNIST"):
        check_data(settings(name="fashion_mnist", folder=str(folder)))


def test_missing_scikit_learn_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"digits needs scikit-learn.*pip install 'prunegate\[demo\]'"):
        check_data(settings())


_WHOLE = gzip.compress(idx(np.zeros((40, 28, 28), dtype=np.uint8)), mtime=0)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(_WHOLE[:40], id="truncated-gzip"),
        pytest.param(_WHOLE[:20] + b"\xff" * 20 + _WHOLE[40:], id="damaged-gzip"),
        pytest.param(b"\x1f\x8bjunk", id="no-gzip"),
        pytest.param(idx(np.zeros((40, 28, 28), dtype=np.uint8))[:-1], id="truncated"),
        pytest.param(b"<html>not found</html>", id="foreign"),
        pytest.param(b"\0\0\x08\xff", id="no-sizes"),
    ],
)
def test_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    folder = fashion_folder(tmp_path)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: cannot be read as an IDX file"):
        load_data(settings(name="fashion_mnist", folder=str(folder)))


@pytest.mark.parametrize(
    "labels",
    [np.zeros(39, np.uint8), np.full(40, 10, np.uint8), np.zeros((40, 1), np.uint8)],
    ids=["too-few", "unknown-class", "two-axes"],
)
def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, labels: np.ndarray) -> None:
    folder = fashion_folder(tmp_path)
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    with pytest.raises(DataError, match="These are not the files of Fashion-MNIST"):
        load_data(settings(name="fashion_mnist", folder=str(folder)))


def test_no_pixel_is_lost_in_smaller_images(tmp_path: Path) -> None:
    folder = fashion_folder(tmp_path / "files")
    one_bright = np.zeros((784, 784), dtype=np.uint8)
    np.fill_diagonal(one_bright, 255)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(one_bright.reshape(784, 28, 28))))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(784, dtype=np.uint8))))
    images = load_data(settings(name="fashion_mnist", folder=str(folder), image_size=8)).train_images
    assert (images.flatten(1).amax(1) > images.min() + 1e-3).all()
