"""Shared by all tests: small models, randomised weights, single-threaded torch."""

from __future__ import annotations

import gc
import math
import os

# A test must not reach for the network; this makes any attempt an error at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# pytest runs several processes; each computes, and so do those they start, on one thread.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import settings
from torch import nn

torch.set_num_threads(1)

# `HYPOTHESIS_PROFILE=long python -m pytest tests/wrapping/test_random_networks.py` looks harder.
settings.register_profile("normal", max_examples=100, derandomize=True)
settings.register_profile("long", max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "normal"))
# The long profile also tries all combinations of what the normal one tries some of: each model, and each way.
IS_LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"


def pytest_collection_finish() -> None:
    """Take what was imported, a million objects that stay, out of the garbage collector's sight.

    It would look at all of them again in each full collection, and every training stage ends with one. What is out of
    sight does not count as long-lived either, so that full collections would come all the time: a tenth of the suite.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(700, 10, 50)


# The ten torchvision models that first light promises, with what randomised eval needs no more than.
TORCHVISION_MODELS = [
    "resnet18",
    "resnet50",
    "vgg16_bn",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "densenet121",
    "efficientnet_b0",
    "regnet_y_400mf",
    "shufflenet_v2_x0_5",
    "googlenet",
]


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and running statistics of sane size: outputs neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)

    def draw(like: torch.Tensor) -> torch.Tensor:
        return torch.rand(like.shape, generator=generator)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(std=1.0 / math.sqrt(max(parameter[0].numel(), 1)), generator=generator)
            else:
                parameter.copy_(draw(parameter) * 0.5 + (0.75 if name.endswith("weight") else -0.25))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(draw(buffer) - 0.5)
            elif name.endswith("running_var"):
                buffer.copy_(draw(buffer) + 0.5)
    return model


def random_masks(groups: list, density: float, seed: int) -> dict[str, torch.Tensor]:
    """A random hard mask for every group that keeps about ``density`` of its units, and one at least."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for group in groups:
        mask = torch.rand(group.num_units, generator=generator) < density
        mask[int(torch.randint(group.num_units, (1,), generator=generator))] = True
        if mask.all():
            mask[int(torch.argmin(mask.int()))] = True
        masks[group.name] = mask
    return masks


class SmallNet(nn.Module):
    """Convolution, norm, residual addition, depthwise and grouped convolution, concatenation, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.inner = nn.Conv2d(12, 12, 3, padding=1, bias=False)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.grouped = nn.Conv2d(12, 16, 3, padding=1, groups=2)
        self.side = nn.Conv2d(12, 5, 1)
        self.head = nn.Linear(21, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.sigmoid(self.norm(self.stem(x)))
        x = x + torch.cos(self.inner(x))
        x = torch.nn.functional.gelu(self.depthwise(x)) + 0.5
        x = torch.cat([self.grouped(x), self.side(x)], dim=1)
        return self.head(x.mean((2, 3)))


@pytest.fixture
def small_net() -> nn.Module:
    torch.manual_seed(0)
    return randomise(SmallNet()).double().eval()


@pytest.fixture
def small_input() -> torch.Tensor:
    return torch.randn(3, 3, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
