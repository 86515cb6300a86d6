"""The meaning of inputs and classes, for users who get a model without its data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from prunegate.data import DataSettings, Meaning, load_data
from prunegate.data.digits import read_digits
from tests.data.pictures import image_folder


def test_inputs_of_digits_follow_from_their_pixels() -> None:
    data = load_data(DataSettings(name="digits", image_size=8))
    meaning = data.meaning
    assert meaning.largest_pixel == load_digits().images.max()
    pixels = torch.from_numpy(read_digits()[0][0][:5]).float()[:, None] / meaning.largest_pixel
    expected = (pixels - meaning.mean[0]) / meaning.deviation[0]
    torch.testing.assert_close(data.example_inputs(5), expected, rtol=1e-4, atol=1e-5)
    assert meaning.class_names == tuple("0123456789")


def test_a_folder_has_its_classes_and_the_transforms_numbers(tmp_path: Path) -> None:
    image_folder(tmp_path / "images")
    names = sorted(entry.name for entry in (tmp_path / "images" / "train").iterdir())
    given = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    data = load_data(DataSettings(name="folder", folder=str(tmp_path / "images"), image_size=16, transform=given))
    assert data.meaning == Meaning(255.0, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), tuple(names))
    plain = load_data(DataSettings(name="folder", folder=str(tmp_path / "images"), image_size=16, channels=1))
    assert plain.meaning.mean == pytest.approx((0.449,), abs=1e-6)  # the mean of ImageNet's three


def tensors(count: int = 8) -> tuple[torch.utils.data.Dataset, torch.utils.data.Dataset]:
    made = torch.utils.data.TensorDataset(torch.rand(count, 3, 8, 8), torch.arange(count) % 2)
    return made, made


def test_nothing_is_claimed_of_tensors_of_ones_own() -> None:
    data = load_data(DataSettings(name="tests.data.test_meaning:tensors", num_classes=2, batch_size=2))
    assert data.meaning == Meaning()
    assert data.meaning.as_dict() == {}
