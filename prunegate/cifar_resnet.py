"""The residual networks for CIFAR, which are in neither timm nor torchvision.

Reference: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", 2016, arXiv:1512.03385,
section 4.2: three stages of width 16, 32 and 64 with n blocks each make 6n + 2 layers. If the shape changes, the
shortcut is a projection (option B of the paper), whose channels can be pruned.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

_PREFIX = "cifar_resnet"
DEPTHS = (8, 14, 20, 32, 44, 56, 110)


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut: (batch, in, height, width) → (batch, out, height / stride, ...)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """Images of about 32 × 32 pixels, (batch, in_chans, height, width), to class scores, (batch, num_classes).

    Args:
        depth: Number of layers, 6n + 2.
        widths: Channels of the three stages.
    """

    def __init__(
        self, depth: int = 20, num_classes: int = 10, in_chans: int = 3, widths: Sequence[int] = (16, 32, 64)
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth: found {depth}, expected 6n + 2 with n of at least 1, such as 20 or 56")
        self.num_classes = num_classes
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        stages, channels = [], widths[0]
        for number, width in enumerate(widths):
            blocks = []
            for place in range((depth - 2) // 6):
                blocks.append(BasicBlock(channels, width, 2 if number > 0 and place == 0 else 1))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stages(torch.relu(self.bn1(self.conv1(x))))
        return self.fc(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


def list_models() -> list[str]:
    """Their names, ``cifar_resnet<depth>``."""
    return [f"{_PREFIX}{depth}" for depth in DEPTHS]


def build(name: str, **arguments: object) -> CifarResNet:
    """The network of this name; arguments are those of `CifarResNet`."""
    return CifarResNet(int(name.removeprefix(_PREFIX)), **arguments)  # type: ignore[arg-type]
