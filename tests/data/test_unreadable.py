"""Unreadable files are skipped, logged once and counted; too many stop the run."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageFile

from prunegate.errors import DataError
from tests.data.pictures import COUNT, folder_data, image_folder, same

BAD = ("train/bee/truncated.jpg", "train/bee/nothing.png", "train/cat/text.jpg")


@pytest.fixture
def spoiled(tmp_path: Path) -> Path:
    """21 good training images and one truncated, one of no bytes and one that is text."""
    image_folder(tmp_path)
    Image.effect_noise((40, 40), 90).convert("RGB").save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    for name, content in zip(BAD, (whole[: len(whole) // 2], b"", b"not a picture\n" * 9), strict=True):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "whole.jpg").unlink()
    return tmp_path


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["folder", "timm/folder"])
def test_the_next_image_stands_in_and_each_file_is_named_once(
    spoiled: Path, workers: int, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = folder_data(spoiled, name=name, workers=workers)
    for epoch in (0, 1):
        # Each of the 24 places is filled; the good image after a bad one is seen twice.
        batches = list(data.train_batches(0, epoch))
        seen = torch.cat([batch.indices for batch in batches])
        assert len(seen) == COUNT * 3 + len(BAD)
        assert len(seen.unique()) == COUNT * 3
        assert all(torch.isfinite(batch.inputs).all() for batch in batches)
    told = warnings(caplog)
    assert len(told) == 3
    for bad in BAD:
        (line,) = [line for line in told if str(spoiled / bad) in line.split(": cannot be read and is skipped: ")[0]]
        assert line.split("skipped: ")[1].startswith(("OSError: ", "UnidentifiedImageError: "))
    assert same(data.train_batches(0, 0, first=3), folder_data(spoiled, name=name).train_batches(0, 0, first=3))


def test_truncated_images_are_left_out_even_where_pil_was_told_to_fill_them_up(
    spoiled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    list(folder_data(spoiled).train_batches(0, 0))
    assert any("truncated.jpg" in line for line in warnings(caplog))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_tests_leave_them_out_and_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image_folder(tmp_path)
    data = folder_data(tmp_path, batch_size=2)
    (tmp_path / "val" / "bee" / "0.png").write_bytes(b"")
    gone = tmp_path / "val" / "cat" / "3.png"  # the last of all, gone since it was listed
    gone.unlink()
    for _ in range(2):
        batches = list(data.test_batches())
        assert torch.cat([batch.indices for batch in batches]).tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
        assert torch.cat([batch.labels for batch in batches]).tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(warnings(caplog)) == 2
    assert any(f"{gone}: cannot be read and is skipped: FileNotFoundError" in line for line in warnings(caplog))


def test_a_batch_of_nothing_is_no_batch(tmp_path: Path) -> None:
    image_folder(tmp_path)
    data = folder_data(tmp_path, batch_size=2)
    for number in range(4):  # batches of eight: the second holds the cats alone
        (tmp_path / "val" / "cat" / f"{number}.png").write_bytes(b"")
    assert [len(batch.labels) for batch in data.test_batches()] == [8]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_more_than_the_limit_stop_the_run(spoiled: Path, workers: int) -> None:
    data = folder_data(spoiled, unreadable_limit=2, workers=workers)
    with pytest.raises(DataError) as caught:
        list(data.train_batches(0, 0))
    text = str(caught.value)
    assert text.startswith("data: found 3 files that cannot be read, expected at most 2. Remove or replace them")
    assert "raise data.unreadable_limit" in text
    assert all(str(spoiled / bad) in text for bad in BAD)
    list(folder_data(spoiled, unreadable_limit=3).train_batches(0, 0))


def test_long_lists_are_cut(tmp_path: Path) -> None:
    image_folder(tmp_path)
    for number in range(COUNT):
        (tmp_path / "train" / "cat" / f"{number}.png").write_bytes(b"")
    data = folder_data(tmp_path, unreadable_limit=6)
    with pytest.raises(DataError, match=r"(?s)found 7 files.*\n  and 2 more$"):
        list(data.train_batches(0, 0))


def test_nothing_readable_is_told_even_below_the_limit(tmp_path: Path) -> None:
    for path in image_folder(tmp_path).glob("train/*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of 21 train samples can be read, expected images"):
        folder_data(tmp_path, unreadable_limit=1000)


def test_decompression_bomb_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image_folder(tmp_path)
    Image.new("RGB", (50, 50)).save(tmp_path / "val" / "ant" / "0.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # twice as many are an error
    assert sum(len(batch.labels) for batch in folder_data(tmp_path).test_batches()) == 11
    assert any("ant/0.png" in line and "DecompressionBombError" in line for line in warnings(caplog))
