"""timm's transforms by the section `transform`: arguments, their mistakes, and images of one channel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from prunegate.data.transforms import make_transforms
from prunegate.errors import DataError
from prunegate.seeding import seeded


def picture(mode: str = "RGB") -> Image.Image:
    return Image.effect_noise((20, 14), 90).convert(mode)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"auto_augment": "rand-m7-mstd0.5-inc1"},
        {"auto_augment": "augmix-m3-w3"},
        {"auto_augment": "original", "re_prob": 1.0, "re_mode": "pixel"},
        {"scale": [0.5, 1.0], "ratio": [1.0, 1.0], "hflip": 0.5, "vflip": 0.5, "color_jitter": [0.4, 0.4, 0.4, 0.1]},
        {"interpolation": "random", "crop_mode": "border", "crop_pct": 0.9},
        {"no_aug": True},
        {"color_jitter": None, "grayscale_prob": 0.5, "gaussian_blur_prob": 0.5},
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else str(given),
)
def test_every_way_gives_a_float_tensor(channels: int, given: dict[str, Any]) -> None:
    train, test = make_transforms(given, channels, 24)
    for key in range(20):
        with seeded(key):
            made = train(picture("RGB" if channels == 3 else "L"))
        assert (made.shape, made.dtype) == ((channels, 24, 24), torch.float32)
    assert test(picture("RGB" if channels == 3 else "L")).shape == (channels, 24, 24)


def test_test_images_are_not_changed_at_random() -> None:
    _, test = make_transforms({"hflip": 1.0, "vflip": 1.0, "re_prob": 1.0, "auto_augment": "rand-m9"}, 3, 8)
    image = picture()
    assert torch.equal(test(image), test(image))
    assert torch.equal(test(image), make_transforms({}, 3, 8)[1](image))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"auto_augmnt": "rand-m7"},
            r"transform\.auto_augmnt: timm's .* no such parameter.*Nearest: auto_augment",
        ),
        ({"is_training": True}, r"data\.transform\.is_training: .* or it is set here"),
        ({"use_prefetcher": True}, r"data\.transform\.use_prefetcher: "),
        ({"zzzz": 1}, r"data\.transform\.zzzz: .*Known: no_aug, "),
        ({"auto_augment": "nonsense"}, r"data\.transform: timm refuses \{'auto_augment': 'nonsense'\}: \w+Error"),
        ({"interpolation": "nearly"}, r"data\.transform: timm refuses"),
        ({"hflip": "often"}, r"data\.transform: timm refuses"),
        ({"mean": [0.5]}, r"data\.transform\.mean: found \[0\.5\], expected a list of 3 numbers"),
        ({"std": 0.5}, r"data\.transform\.std: found 0\.5, expected a list of 3 numbers"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_mistakes_are_told_with_the_key(given: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text):
        make_transforms(given, 3, 16)


def test_checking_draws_no_global_random_number() -> None:
    state = torch.get_rng_state()
    make_transforms({"re_prob": 1.0, "auto_augment": "rand-m9"}, 3, 8)
    assert torch.equal(torch.get_rng_state(), state)
