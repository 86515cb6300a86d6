"""CIFAR-10 in its binary form, on generated images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from prunegate import DataError
from prunegate.data import DataSettings, load_data
from prunegate.data.cifar10 import read_cifar10


def cifar(folder: Path, count: int = 40) -> Path:
    """Files of ``count`` random images each under CIFAR-10's names; the label is the record's number, modulo 10."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        records = rng.integers(0, 256, (count, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(count) % 10
        records.tofile(folder / name)
    return folder


def test_pixels_are_read_by_channel_then_row(tmp_path: Path) -> None:
    folder = cifar(tmp_path / "bin")
    raw = (folder / "data_batch_2.bin").read_bytes()
    (images, labels), (test_images, test_labels) = read_cifar10(str(folder))
    assert images.shape == (200, 3, 32, 32)
    assert test_images.shape == (40, 3, 32, 32)
    # The third record of the second file: green, row 5, column 7.
    assert images[42, 1, 5, 7] == raw[2 * 3073 + 1 + 1024 + 5 * 32 + 7]
    assert labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert test_labels.tolist() == [i % 10 for i in range(40)]


def test_each_colour_is_normalised_by_itself(tmp_path: Path) -> None:
    cifar(tmp_path / "cifar-10-batches-bin")
    found = load_data(DataSettings(name="cifar10", folder=str(tmp_path), image_size=32))
    assert found.shape == (3, 32, 32)
    torch.testing.assert_close(found.train_images.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.train_images.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)


def test_missing_files_are_told_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz"):
        read_cifar10(str(tmp_path))


@pytest.mark.parametrize("content", [b"", bytes(3000), bytes([200]) + bytes(3072)])
def test_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    folder = cifar(tmp_path / "bin")
    (folder / "data_batch_4.bin").write_bytes(content)
    with pytest.raises(DataError, match=r"data_batch_4\.bin: found .* bytes"):
        read_cifar10(str(folder))
