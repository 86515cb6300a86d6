from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from prunegate.bench import BenchSettings
from prunegate.errors import BenchError


def test_every_combination_is_measured_with_the_present_threads_by_default() -> None:
    settings = BenchSettings(layouts=("contiguous", "channels_last"), runtimes=("eager", "fused"))
    assert settings.threads == (torch.get_num_threads(),)
    found = [(s.runtime, s.layout) for s in settings.settings(1)]
    assert found == [
        ("eager", "contiguous"),
        ("eager", "channels_last"),
        ("fused", "contiguous"),
        ("fused", "channels_last"),
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"batch_sizes": (1, 0)}, "--batch-sizes: found 0, expected whole numbers from 1 on."),
        ({"batch_sizes": ()}, "--batch-sizes: found nothing, expected values separated by commas."),
        ({"threads": (4096,)}, f"--threads: found 4096, expected whole numbers from 1 to {os.cpu_count()}, the cores"),
        (
            {"layouts": ("channel_last",)},
            "--layouts: found 'channel_last', expected some of contiguous, channels_last.",
        ),
        ({"runtimes": ("compile",)}, "Did you mean compiled?"),
        ({"runtimes": ("eager", "eager")}, "--runtimes: found eager twice, expected each value once."),
        ({"precisions": ("fp8",)}, "expected some of float32, bfloat16, float16"),
        ({"seconds": 0.0}, "--seconds: found 0, expected more than 0"),
    ],
)
def test_invalid_settings_are_refused(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(BenchError) as error:
        BenchSettings(**given)
    assert expected in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(BenchError, match="--device: found cuda, but torch finds no GPU here"):
        BenchSettings(device="cuda")
