"""Small models written after papers whose code is in no package; each has layers that the others lack."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import spectral_norm

from .case import PackageCase, image, sequence


class Edsr(nn.Module):
    """Super-resolution without norms (arXiv:1707.02921)."""

    def __init__(self, width: int = 48, blocks: int = 3) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.45, 0.44, 0.40]).view(1, 3, 1, 1))
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(True), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(blocks)
        )
        self.last = nn.Conv2d(width, width, 3, padding=1)
        self.tail = nn.Sequential(
            nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(width, 3, 3, padding=1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = y = self.head(x - self.mean)
        for block in self.body:
            y = y + 0.1 * block(y)
        return self.tail(x + self.last(y)) + self.mean


class Crnn(nn.Module):
    """Reads text in pictures: convolutions, then two LSTMs in both directions (arXiv:1507.05717)."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2),
            nn.Conv2d(24, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(True), nn.MaxPool2d(2),
            nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(True), nn.MaxPool2d((4, 1)),
        )  # fmt: skip
        self.first = nn.LSTM(96, hidden, bidirectional=True, batch_first=True)
        self.middle = nn.Linear(2 * hidden, 40)
        self.second = nn.LSTM(40, hidden, bidirectional=True, batch_first=True)
        self.classes = nn.Linear(2 * hidden, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x).flatten(1, 2).transpose(1, 2)
        x = self.middle(self.first(x)[0])
        return self.classes(self.second(x)[0]).log_softmax(-1)


class DeepSpeech(nn.Module):
    """Speech to letters: convolutions over a spectrogram, then GRUs with norms between (arXiv:1512.02595)."""

    def __init__(self, hidden: int = 40) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 16, (11, 5), (2, 2), (5, 2)), nn.BatchNorm2d(16), nn.Hardtanh(0, 20),
            nn.Conv2d(16, 24, (5, 5), (2, 1), (2, 2)), nn.BatchNorm2d(24), nn.Hardtanh(0, 20),
        )  # fmt: skip
        self.first = nn.GRU(24 * 8, hidden, bidirectional=True, batch_first=True)
        self.norm = nn.BatchNorm1d(hidden)
        self.second = nn.GRU(hidden, hidden, bidirectional=True, batch_first=True)
        self.classes = nn.Linear(hidden, 20, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).flatten(1, 2).transpose(1, 2)
        x = self._sum(self.first(x)[0])
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return self.classes(self._sum(self.second(x)[0])).log_softmax(-1)

    @staticmethod
    def _sum(x: torch.Tensor) -> torch.Tensor:
        """Of both directions."""
        return x.view(x.size(0), x.size(1), 2, -1).sum(2)


class _Turn(nn.Module):
    """A square matrix for each cloud of points."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.points = nn.Sequential(
            nn.Conv1d(size, 32, 1), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 64, 1), nn.BatchNorm1d(64), nn.ReLU()
        )
        self.matrix = nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, size * size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.matrix(self.points(x).amax(-1)).view(-1, self.size, self.size)
        return found + torch.eye(self.size, dtype=x.dtype, device=x.device)


class PointNet(nn.Module):
    """Classifies clouds of points (arXiv:1612.00593)."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = _Turn(3)
        self.first = nn.Sequential(nn.Conv1d(3, 24, 1), nn.BatchNorm1d(24), nn.ReLU())
        self.feature_turn = _Turn(24)
        self.second = nn.Sequential(nn.Conv1d(24, 48, 1), nn.BatchNorm1d(48), nn.ReLU(), nn.Conv1d(48, 64, 1))
        self.head = nn.Sequential(nn.Linear(64, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Dropout(0.3), nn.Linear(40, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.bmm(x.transpose(1, 2), self.turn(x)).transpose(1, 2)
        x = self.first(x)
        x = torch.bmm(x.transpose(1, 2), self.feature_turn(x)).transpose(1, 2)
        return self.head(torch.max(self.second(x), 2)[0])


class _SpectralBlock(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = spectral_norm(nn.Conv2d(before, after, 3, padding=1))
        self.second = spectral_norm(nn.Conv2d(after, after, 3, padding=1))
        self.shortcut = spectral_norm(nn.Conv2d(before, after, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(F.relu(self.first(F.relu(x))))
        return F.avg_pool2d(y, 2) + self.shortcut(F.avg_pool2d(x, 2))


class SnganDiscriminator(nn.Module):
    """Tells made pictures from true ones, with spectral norm (arXiv:1802.05957)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(_SpectralBlock(3, 32), _SpectralBlock(32, 48), _SpectralBlock(48, 64))
        self.score = spectral_norm(nn.Linear(64, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.score(F.relu(self.blocks(x)).sum((2, 3)))


class _ModulatedConv(nn.Module):
    """A weight for each sample, in one grouped convolution."""

    def __init__(self, before: int, after: int, style: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before, 3, 3) / math.sqrt(9 * before))
        self.style = nn.Linear(style, before)
        self.bias = nn.Parameter(torch.zeros(after))

    def forward(self, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        batch, before, height, width = x.shape
        weight = self.weight[None] * (self.style(style)[:, None, :, None, None] + 1)
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        x = x.reshape(1, batch * before, height, width)
        x = F.conv2d(x, weight.reshape(-1, before, 3, 3), padding=1, groups=batch)
        x = x.view(batch, -1, height, width) + self.bias.view(1, -1, 1, 1)
        return F.leaky_relu(x, 0.2)


class StyleGan2(nn.Module):
    """Makes pictures from noise, its weights modulated by style (arXiv:1912.04958)."""

    def __init__(self) -> None:
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(24, 40), nn.LeakyReLU(0.2), nn.Linear(40, 32), nn.LeakyReLU(0.2))
        self.start = nn.Parameter(torch.randn(1, 48, 4, 4))
        self.layers = nn.ModuleList(_ModulatedConv(a, b, 32) for a, b in ((48, 40), (40, 32), (32, 24)))
        self.picture = nn.Conv2d(24, 3, 1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        style = self.mapping(F.normalize(z, dim=1))
        x = self.start.expand(z.size(0), -1, -1, -1)
        for layer in self.layers:
            x = layer(F.interpolate(x, scale_factor=2.0, mode="bilinear"), style)
        return self.picture(x)


class WaveNet(nn.Module):
    """Dilated causal convolutions with gates, residuals and skips (arXiv:1609.03499)."""

    def __init__(self, width: int = 32, skip: int = 40) -> None:
        super().__init__()
        self.start = nn.Conv1d(10, width, 1)
        self.dilations = (1, 2, 4, 8)
        self.gated = nn.ModuleList(nn.Conv1d(width, 2 * 24, 2, dilation=d) for d in self.dilations)
        self.residual = nn.ModuleList(nn.Conv1d(24, width, 1) for _ in self.dilations)
        self.skips = nn.ModuleList(nn.Conv1d(24, skip, 1) for _ in self.dilations)
        self.end = nn.Sequential(nn.ReLU(), nn.Conv1d(skip, 48, 1), nn.ReLU(), nn.Conv1d(48, 10, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.start(x)
        total = torch.zeros((), dtype=x.dtype, device=x.device)
        for dilation, gated, residual, skip in zip(self.dilations, self.gated, self.residual, self.skips, strict=True):
            value, gate = gated(F.pad(x, (dilation, 0))).chunk(2, 1)
            y = torch.tanh(value) * torch.sigmoid(gate)
            total = total + skip(y)
            x = x + residual(y)
        return self.end(total)


def _line(batch: int, width: int) -> torch.Tensor:
    return torch.randn(batch, 1, 32, width)


def _spectrogram(batch: int, length: int) -> torch.Tensor:
    return torch.randn(batch, 1, 32, length)


def _noise(batch: int, _: int) -> torch.Tensor:
    return torch.randn(batch, 24)


CASES: dict[str, PackageCase] = {
    "own/edsr": PackageCase(Edsr, image(), 16, 24),
    "own/crnn": PackageCase(Crnn, _line, 48, 64),
    "own/deepspeech-gru": PackageCase(DeepSpeech, _spectrogram, 40, 56),
    "own/pointnet": PackageCase(PointNet, sequence(3), 30, 44),
    "own/sngan": PackageCase(SnganDiscriminator, image(), 32, 48),
    "own/stylegan2-like": PackageCase(StyleGan2, _noise, 1),
    "own/wavenet": PackageCase(WaveNet, sequence(10), 40, 56),
}
