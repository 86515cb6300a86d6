"""Operations that look at several channels at once, or move them: what can be cut is, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.utils import parametrizations as P

import prunegate
from tests.wrapping.exactness import assert_exact, noise, units

CHANNELS = 12


class Net(nn.Module):
    """Layers by name, and a forward written in a line."""

    def __init__(self, forward: Callable[[Any, torch.Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.body = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: torch.Tensor) -> Any:
        return self.body(self, x)


def conv(inputs: int, outputs: int, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def image(around: Callable[[Any, torch.Tensor], torch.Tensor], after: int = CHANNELS, **layers: nn.Module) -> Net:
    """An operation between two convolutions."""
    return Net(lambda m, x: m.b(around(m, m.a(x))), a=conv(3, CHANNELS), b=conv(after, 4), **layers)


def scaled(by: Callable[[torch.Tensor], torch.Tensor]) -> Net:
    """Channels times something that is computed from all of them."""
    return image(lambda m, y: y * torch.sigmoid(by(y)))


def rows(around: Callable[[Any, torch.Tensor], torch.Tensor], after: int = CHANNELS, **layers: nn.Module) -> Net:
    """An operation between two linear layers."""
    layers.setdefault("c", nn.Linear(5, CHANNELS))
    return Net(lambda m, x: m.b(around(m, m.a(x))), a=nn.Linear(5, CHANNELS), b=nn.Linear(after, 3), **layers)


def against(distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Net:
    """What two layers make of the same input, compared: one number for each row, or for each pair of rows."""
    return Net(lambda m, x: distance(m.a(x), m.c(x)), a=nn.Linear(5, CHANNELS), c=nn.Linear(5, CHANNELS))


IMAGE, IMAGES = noise(2, 3, 8, 8), (noise(3, 3, 8, 8), noise(2, 3, 12, 10))
ROWS, MORE_ROWS = noise(2, 6, 5), (noise(3, 6, 5), noise(2, 9, 5))
ALL = {"a": CHANNELS}
BOTH = {"a": CHANNELS, "c": CHANNELS}

OVER_CHANNELS: dict[str, tuple[nn.Module, dict[str, int]]] = {
    "largest value": (scaled(lambda y: y.max(1, keepdim=True)[0]), ALL),
    "largest value by name": (scaled(lambda y: torch.max(y, dim=1, keepdim=True).values), ALL),
    "smallest value": (scaled(lambda y: y.min(dim=1, keepdim=True)[0]), ALL),
    "amin": (scaled(lambda y: y.amin(1, True)), ALL),
    "largest of all": (scaled(lambda y: y.max()), ALL),
    "smallest and largest": (scaled(lambda y: sum(y.aminmax(dim=1, keepdim=True))), ALL),
    "logsumexp": (scaled(lambda y: y.logsumexp(1, keepdim=True)), ALL),
    "product": (scaled(lambda y: (y + 2).prod(1, keepdim=True)), ALL),
    "log softmax": (image(lambda m, y: y.log_softmax(1)), ALL),
    "softmin": (image(lambda m, y: F.softmin(y, dim=1)), ALL),
    "entropy": (scaled(lambda y: torch.special.entr(y.softmax(1)).sum(1, keepdim=True)), ALL),
    "divergence": (
        scaled(lambda y: F.kl_div(y.log_softmax(1), y.flip(0).softmax(1), reduction="none").sum(1, keepdim=True)),
        ALL,
    ),
    "root of a softmax": (image(lambda m, y: y.softmax(1).sqrt()), ALL),
    "inverse of a softmin": (image(lambda m, y: 1 / (1 + 1 / F.softmin(y, dim=1))), ALL),
    "linalg norm": (scaled(lambda y: torch.linalg.norm(y, dim=1, keepdim=True)), ALL),
    "running sum": (image(lambda m, y: y.cumsum(1)), ALL),
    "running logsumexp": (image(lambda m, y: y.logcumsumexp(1)), ALL),
    "normalised": (image(lambda m, y: F.normalize(y, dim=1)), ALL),
}
MOVED: dict[str, tuple[nn.Module, dict[str, int]]] = {
    "unpooled": (image(lambda m, y: F.max_unpool2d(*F.max_pool2d(y, 2, return_indices=True), 2)), ALL),
    "unfolded and folded": (
        image(lambda m, y: F.fold(F.unfold(y, 3, padding=1), y.shape[-2:], 3, padding=1)),
        ALL,
    ),
    "unfolded into a layer": (
        Net(
            lambda m, x: m.b(F.unfold(m.a(x), 3, padding=1).transpose(1, 2)),
            a=conv(3, CHANNELS),
            b=nn.Linear(9 * CHANNELS, 4),
        ),
        ALL,
    ),
    "padded shortcut": (
        Net(
            lambda m, x: m.b(m.c(m.a(x)) + F.pad(m.a(x), (0, 0, 0, 0, 3, 5))),
            a=conv(3, CHANNELS),
            c=conv(CHANNELS, 20),
            b=conv(20, 4),
        ),
        {"a": CHANNELS, "c": 8},
    ),
    "native channel shuffle": (image(lambda m, y: F.relu(torch.channel_shuffle(y, 3))), {"a": CHANNELS // 3}),
    "channel shuffle before a norm of other groups": (
        image(lambda m, y: m.norm(m.shuffle(y)), shuffle=nn.ChannelShuffle(2), norm=nn.GroupNorm(3, CHANNELS)),
        {"a": 3},
    ),
    "halves swapped": (image(lambda m, y: torch.cat([y[:, 8:], y[:, :8]], 1)), ALL),
    "rolled positions": (image(lambda m, y: y.roll((1, 2), (2, 3))), ALL),
}


@pytest.mark.parametrize("name", [*OVER_CHANNELS, *MOVED])
def test_it_is_cut_without_loss(name: str) -> None:
    net, expected = {**OVER_CHANNELS, **MOVED}[name]
    assert units(assert_exact(net, IMAGE, IMAGES)) == expected


COMPARED: dict[str, tuple[nn.Module, dict[str, int]]] = {
    "cosine similarity": (against(lambda a, c: F.cosine_similarity(a, c, dim=-1)), ALL),
    "distance": (against(lambda a, c: F.pairwise_distance(a, c)), ALL),
    "all distances": (against(torch.cdist), ALL),
    "all distances by the largest difference": (against(lambda a, c: torch.cdist(a, c, p=torch.inf)), ALL),
    "dot product": (against(lambda a, c: (a * c).sum(-1)), ALL),
    "bilinear": (
        Net(
            lambda m, x: m.b(m.a(x), m.c(x)), a=nn.Linear(5, CHANNELS), c=nn.Linear(5, 7), b=nn.Bilinear(CHANNELS, 7, 3)
        ),
        {"a": CHANNELS, "c": 7},
    ),
    "bilinear in the middle": (
        rows(lambda m, y: m.d(y, y), 6, d=nn.Bilinear(CHANNELS, CHANNELS, 6)),
        {"a": CHANNELS, "d": 6},
    ),
}


@pytest.mark.parametrize("name", COMPARED)
def test_what_is_compared_is_cut_on_both_sides(name: str) -> None:
    net, expected = COMPARED[name]
    assert units(assert_exact(net, ROWS, MORE_ROWS)) == expected


@pytest.mark.parametrize(
    "read", [lambda m, y: y.gather(1, y.max(1, keepdim=True)[1]), lambda m, y: y.max(1, keepdim=True)[1]]
)
def test_where_the_largest_channel_is_keeps_all_of_them(read: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
    net = Net(lambda m, x: (m.b(m.a(x)), read(m, m.a(x))), a=conv(3, CHANNELS), c=conv(3, 6), b=conv(CHANNELS, 4))
    with pytest.raises(prunegate.NothingToPruneError, match="where max found its entry among these channels is used"):
        prunegate.wrap(net, IMAGE.float())


def decoder(up: Callable[[Any, torch.Tensor], torch.Tensor], **layers: nn.Module) -> Net:
    """A layer whose outputs are channels and positions."""
    return Net(
        lambda m, z: m.out(up(m, m.fc(z).view(-1, CHANNELS, 4, 4))),
        fc=nn.Linear(6, 16 * CHANNELS),
        out=conv(CHANNELS, 3),
        **layers,
    )


LATENT, LATENTS = noise(2, 6), (noise(5, 6),)
DECODERS = {
    "straight into a convolution": decoder(lambda m, y: y),
    "resized": decoder(lambda m, y: F.interpolate(y, scale_factor=2)),
    "normalised": decoder(lambda m, y: m.norm(y).relu(), norm=nn.BatchNorm2d(CHANNELS)),
    "normalised in groups": decoder(lambda m, y: m.norm(y), norm=nn.GroupNorm(1, CHANNELS)),
    "normalised by sample": decoder(lambda m, y: m.norm(y), norm=nn.InstanceNorm2d(CHANNELS, affine=True)),
    "padded by reflection": decoder(lambda m, y: F.pad(y, (1, 1, 1, 1), mode="reflect")),
    "pooled": decoder(lambda m, y: F.avg_pool2d(y, 2)),
    "transposed": decoder(lambda m, y: m.larger(y), larger=nn.ConvTranspose2d(CHANNELS, CHANNELS, 2, 2)),
    "depthwise": decoder(lambda m, y: m.larger(y), larger=conv(CHANNELS, CHANNELS, groups=CHANNELS)),
    "shuffled": Net(
        lambda m, z: m.out(F.pixel_shuffle(m.fc(z).view(-1, 4 * CHANNELS, 4, 4), 2)),
        fc=nn.Linear(6, 64 * CHANNELS),
        out=conv(CHANNELS, 3),
    ),
}


@pytest.mark.parametrize("name", DECODERS)
def test_channels_unflattened_beside_positions_go_with_all_of_these(name: str) -> None:
    gated = assert_exact(DECODERS[name], LATENT, LATENTS)
    assert units(gated)["fc"] == CHANNELS


class Deformable(nn.Module):
    """Offsets and masks of a deformable convolution have layers of their own, which stay."""

    def __init__(self, offset_groups: int = 1) -> None:
        super().__init__()
        self.a, self.b = conv(3, CHANNELS), conv(10, 4)
        self.offset, self.weight = conv(3, 18 * offset_groups), conv(3, 9 * offset_groups)
        self.d = torchvision.ops.DeformConv2d(CHANNELS, 10, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.b(self.d(self.a(x), self.offset(x), self.weight(x).sigmoid()))
        return y


@pytest.mark.parametrize(("offset_groups", "left"), [(1, CHANNELS), (2, CHANNELS // 2)])
def test_deformable_convolutions_are_cut_as_others_are(offset_groups: int, left: int) -> None:
    gated = assert_exact(Deformable(offset_groups), IMAGE, IMAGES)
    assert units(gated) == {"a": left, "d": 10}
    assert {p.pin.reason for p in gated.pinned if p.name in ("offset", "weight")} == {"used as coordinates"}


FOURIER = {
    "real, over positions": image(lambda m, y: torch.fft.irfft2(torch.fft.rfft2(y) * 2, s=y.shape[-2:])),
    "complex": image(lambda m, y: torch.fft.ifft(torch.fft.fft(y, dim=-1) * 1j, dim=-1).real),
    "phases": image(lambda m, y: torch.view_as_real(torch.view_as_complex(torch.stack([y, y.sin()], -1)))[..., 1]),
}


@pytest.mark.parametrize("name", FOURIER)
def test_fourier_transforms_over_positions_keep_channels_apart(name: str) -> None:
    assert units(assert_exact(FOURIER[name], IMAGE, IMAGES)) == ALL


def test_a_fourier_transform_over_channels_keeps_them_and_is_told() -> None:
    net = image(lambda m, y: torch.fft.fft(y, dim=1).real)
    with pytest.raises(prunegate.NothingToPruneError, match="mixed with one another by a Fourier transform"):
        prunegate.wrap(net, IMAGE.float())


class GraphAttention(nn.Module):
    """Heads beside nodes, gathered and added up along edges."""

    source: torch.Tensor
    target: torch.Tensor

    def __init__(self, heads: int, width: int, add_up: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.heads, self.width, self.add_up = heads, width, add_up
        self.a, self.b = nn.Linear(5, heads * width), nn.Linear(heads * width, 3)
        self.weight = nn.Parameter(torch.randn(1, heads, width))
        self.register_buffer("source", torch.tensor([0, 1, 2, 3, 4, 5, 0]))
        self.register_buffer("target", torch.tensor([1, 2, 3, 4, 5, 0, 3]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x).view(-1, self.heads, self.width)
        score = (h * self.weight).sum(-1)
        alpha = F.leaky_relu(score[self.source] + score[self.target]).exp()
        total = torch.zeros_like(score).index_add(0, self.target, alpha)[self.target]
        message = h[self.source] * (alpha / (total + 1e-9)).unsqueeze(-1)
        y: torch.Tensor = self.b(self.add_up(h, self.target, message).flatten(1))
        return y


def spread(index: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return index.view(-1, 1, 1).expand_as(like)


ADD_UP: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "scatter_add": lambda h, index, m: torch.zeros_like(h).scatter_add(0, spread(index, m), m),
    "to zeros of a form": lambda h, index, m: m.new_zeros(6, *m.shape[1:]).scatter_add_(0, spread(index, m), m),
    "scatter": lambda h, index, m: m.new_zeros(6, *m.shape[1:]).scatter_(0, spread(index, m), m),
    "scatter_reduce": lambda h, index, m: m.new_zeros(6, *m.shape[1:]).scatter_reduce(0, spread(index, m), m, "amax"),
    "index_add": lambda h, index, m: m.new_zeros(6, *m.shape[1:]).index_add(0, index, m),
    "index_put": lambda h, index, m: m.new_zeros(6, *m.shape[1:]).index_put((index,), m, accumulate=True),
}


@pytest.mark.parametrize(("heads", "width"), [(4, 6), (6, 4)])
@pytest.mark.parametrize("name", ADD_UP)
def test_graph_attention_loses_heads_or_places_within_them(heads: int, width: int, name: str) -> None:
    assert units(assert_exact(GraphAttention(heads, width, ADD_UP[name]), noise(6, 5))) == {"a": 6}


class SparseProduct(nn.Module):
    adjacency: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, CHANNELS), nn.Linear(CHANNELS, 3)
        self.register_buffer("adjacency", (torch.eye(6) + torch.diag(torch.ones(5), 1)).double().to_sparse())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.b(torch.sparse.mm(self.adjacency, self.a(x)))
        return y


def test_a_sparse_matrix_of_neighbours_keeps_channels_apart() -> None:
    assert units(assert_exact(SparseProduct(), noise(6, 5))) == ALL


COMPUTED: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "spectral": (
        lambda: nn.Sequential(P.spectral_norm(conv(3, 12)), nn.ReLU(), P.spectral_norm(conv(12, 8)), conv(8, 4)),
        {"0.parametrizations.weight.original": 12, "2.parametrizations.weight.original": 8},
    ),
    **{
        f"weight norm along {dim}": (
            lambda dim=dim: nn.Sequential(
                P.weight_norm(conv(3, 12), dim=dim), nn.Tanh(), P.weight_norm(conv(12, 8), dim=dim), conv(8, 4)
            ),  # type: ignore[misc]
            {"0.parametrizations.weight.original1": 12, "2.parametrizations.weight.original1": 8},
        )
        for dim in (0, 1, 2, 3, None)
    },
    "weight norm of transposed convolutions": (
        lambda: nn.Sequential(
            P.weight_norm(nn.ConvTranspose2d(3, 12, 2, 2)),
            nn.Tanh(),
            P.weight_norm(nn.ConvTranspose2d(12, 8, 2, 2), dim=1),
            conv(8, 4),
        ),
        {"0.parametrizations.weight.original1": 12, "2.parametrizations.weight.original1": 8},
    ),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_weights_that_are_computed_are_cut_through_the_computation(name: str) -> None:
    make, expected = COMPUTED[name]
    assert units(assert_exact(make(), IMAGE, IMAGES)) == expected


class Generated(nn.Module):
    """The weight of a layer is made by another one: its rows or its columns can go."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.h, self.b = nn.Linear(5, CHANNELS), nn.Linear(5, 10 * CHANNELS), nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.b(F.linear(self.a(x), self.h(x.mean((0, 1))).view(10, CHANNELS)))
        return y


def test_a_generated_weight_loses_what_leaves_most_units() -> None:
    gated = assert_exact(Generated(), ROWS, MORE_ROWS)
    assert units(gated) == ALL
    assert "h.weight" in {member.tensor for group in gated.groups for member in group.members}


def test_a_deviation_of_zero_has_no_gradient_as_torch_has_it() -> None:
    net = rows(lambda m, y: y.relu() / (y.relu().std(-1, keepdim=True) + 1e-5))
    gated = prunegate.wrap(net.double().eval(), ROWS)
    gated.set_masks({group.name: torch.arange(group.num_units) < 2 for group in gated.groups})
    with torch.no_grad():
        dict(gated.model.named_parameters())["a.bias"].fill_(-100.0)
    gated(ROWS).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in gated.parameters() if p.grad is not None)


def test_a_slice_of_which_no_channel_is_kept_is_empty() -> None:
    net = image(lambda m, y: torch.cat([y[:, 8:], y[:, :8]], 1)).double().eval()
    gated = prunegate.wrap(net, IMAGE)
    gated.set_masks({"a": torch.arange(CHANNELS) < 4})
    compact = prunegate.compact(gated).model
    with torch.no_grad():
        torch.testing.assert_close(compact(IMAGE), gated.eval()(IMAGE), rtol=1e-9, atol=1e-12)
