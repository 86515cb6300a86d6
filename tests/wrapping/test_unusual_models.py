"""Models that are unusual in what they hold or hand on: precisions, buffers, generators, sizes not known yet."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunegate
from prunegate.compaction.precision import Widely
from prunegate.errors import CompactionError, PrunegateError, TraceError
from tests.conftest import random_masks
from tests.wrapping.exactness import assert_exact, noise, units

WIDTH = 16


class Net(nn.Module):
    """Two layers with some code between them, in a module of its own or in the model's forward."""

    def __init__(self, between: Callable[..., torch.Tensor], apart: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.between: Callable[..., torch.Tensor] = Apart(between) if apart else between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.b(self.between(self.a(x)))
        return y


class Apart(nn.Module):
    def __init__(self, between: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.between = between

    def forward(self, h: torch.Tensor, *others: Any) -> torch.Tensor:
        return self.between(h, *others)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _heads(h: torch.Tensor) -> torch.Tensor:
    return h.view(len(h), 4, 4).softmax(-1).reshape(len(h), 16)


OPERATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "noise": lambda h: h + torch.rand(16, generator=_seeded(), dtype=h.dtype),
    "noise as wide as it finds": lambda h: h + torch.randn(h.shape[1], generator=_seeded(), dtype=h.dtype),
    "noise written in place": lambda h: h + torch.empty(16, dtype=h.dtype).normal_(generator=_seeded()),
    "noise beside heads": lambda h: _heads(h) + torch.rand(16, generator=_seeded(), dtype=h.dtype),
    "an order of samples": lambda h: _heads(h[torch.randperm(len(h), generator=_seeded())]),
    "a precision of its own": lambda h: _heads(h) + torch.zeros(16, dtype=torch.float64),
    "infinity": lambda h: torch.where(_heads(h) > 0.9, float("inf"), _heads(h)).clamp(max=2.0),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("apart", [False, True], ids=["in the model", "in a module"])
def test_what_cannot_be_written_down_is_served_or_told(name: str, apart: bool) -> None:
    x = torch.randn(4, 5, dtype=torch.float64)
    model = Net(OPERATIONS[name], apart).double().eval()
    try:
        gated = prunegate.wrap(model, x)
        gated.set_masks(random_masks(gated.groups, 0.5, 0))
        compact = prunegate.compact(gated).model
    except PrunegateError:
        return
    torch.testing.assert_close(compact(x), gated(x), rtol=1e-9, atol=1e-12)


class Settings:
    heads = 4


class Handing(Net):
    """Hands objects of any class to the module between its layers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        others = (torch.float64, torch.device("cpu"), len, lambda t: t, ..., range(3), x.shape)
        y: torch.Tensor = self.b(self.between(self.a(x), Settings(), _seeded(), *others))
        return y


def _noisy_heads(h: torch.Tensor, settings: Settings, generator: torch.Generator, *_: Any) -> torch.Tensor:
    heads = h.view(len(h), settings.heads, 4).softmax(-1)
    return heads.reshape(len(h), 16) + torch.rand(16, generator=generator, dtype=h.dtype)


def test_a_module_that_is_handed_objects_of_any_class_is_served_or_told() -> None:
    x = torch.randn(2, 5).double()
    try:
        gated = prunegate.wrap(Handing(_noisy_heads, True).double(), x)
        gated.set_masks(random_masks(gated.groups, 0.5, 0))
        compact = prunegate.compact(gated).model
    except PrunegateError:
        return
    torch.testing.assert_close(compact(x), gated(x), rtol=1e-9, atol=1e-12)


class Mixed(nn.Module):
    """Layers of two precisions; the code casts between them."""

    def __init__(self, outer: torch.dtype, inner: torch.dtype, by_weight: bool) -> None:
        super().__init__()
        self.outer, self.inner, self.by_weight = outer, inner, by_weight
        self.a, self.c = nn.Linear(5, 24).to(outer), nn.Linear(WIDTH, 3).to(outer)
        self.norm, self.b = nn.LayerNorm(24).to(inner), nn.Linear(24, WIDTH).to(inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x).relu()
        h = self.b(self.norm(h.to(self.b.weight.dtype if self.by_weight else self.inner))).relu()
        y: torch.Tensor = self.c(h.to(self.c.weight.dtype) if self.by_weight else h.to(self.outer))
        return y


@pytest.mark.parametrize("by_weight", [False, True])
@pytest.mark.parametrize("inner", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("outer", [torch.float64, torch.float32, torch.bfloat16])
def test_layers_of_several_precisions(outer: torch.dtype, inner: torch.dtype, by_weight: bool) -> None:
    x = torch.randn(4, 5).to(outer)
    gated = prunegate.wrap(Mixed(outer, inner, by_weight).eval(), x)
    assert [group.num_units for group in gated.groups] == [24, WIDTH]
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    compact = prunegate.compact(gated).model
    assert (compact.a.weight.dtype, compact.b.weight.dtype) == (outer, inner)
    loose = 1e-5 if {outer, inner} <= {torch.float64, torch.float32} else 2e-2
    torch.testing.assert_close(compact(x).double(), gated(x).double(), rtol=loose, atol=loose)
    gated.train().release_masks()
    gated(x).float().square().sum().backward()
    assert torch.isfinite(gated.gates.logits.grad).all()


def test_comparisons_in_several_threads_leave_the_default_precision_alone() -> None:
    before = torch.get_default_dtype()
    both_in = threading.Barrier(2, timeout=0.5)

    def compare(dtype: torch.dtype) -> None:
        with Widely(dtype):
            with contextlib.suppress(threading.BrokenBarrierError):  # they take turns
                both_in.wait()
            assert torch.zeros(1).dtype is dtype

    threads = [threading.Thread(target=compare, args=(dtype,)) for dtype in (torch.float64, torch.float32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.get_default_dtype() is before


def test_a_lazy_layer_that_has_seen_no_batch_is_told_of_with_the_way_out() -> None:
    model = nn.Sequential(nn.LazyConv1d(WIDTH, 3), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyConv1d(4, 3))
    x = torch.randn(2, 3, 9)
    with pytest.raises(TraceError, match=r"0\.weight.*no shape yet.*Call model\(batch\) once"):
        prunegate.wrap(model, x)
    model(x)
    assert [group.num_units for group in prunegate.wrap(model, x).groups] == [WIDTH]


def test_a_model_without_weights_is_gated_but_not_compacted() -> None:
    with torch.device("meta"):
        model, x = nn.Sequential(nn.Linear(5, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)), torch.randn(2, 5)
    gated = prunegate.wrap(model, x)
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    with pytest.raises(CompactionError, match=r"0\.weight: found a tensor on the meta device"):
        prunegate.compact(gated)


class Buffered(nn.Module):
    """Channels are read by a buffer, which training changes in place."""

    def __init__(self, read: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, WIDTH, 3, padding=1), nn.Conv1d(WIDTH, 4, 3)
        self.read = read
        self.register_buffer("table", torch.randn(WIDTH, WIDTH, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.read(self.a(x).relu(), self.table)
        if self.training:
            with torch.no_grad():
                self.table.mul_(0.9)
        y: torch.Tensor = self.b(h)
        return y


READS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "convolution": lambda h, table: F.conv1d(h, table, padding=1),
    "matrix product": lambda h, table: (h.transpose(1, 2) @ table[:, :, 0]).transpose(1, 2),
    "linear": lambda h, table: F.linear(h.transpose(1, 2), table[:, :, 0]).transpose(1, 2),
    "einsum": lambda h, table: torch.einsum("bct,cd->bdt", h, table[:, :, 0]),
    "distances": lambda h, table: h * (h.transpose(1, 2) @ table[0]).sum((1, 2), keepdim=True),
    "addition": lambda h, table: h + table[:, 0, :1],
}


@pytest.mark.parametrize("name", READS)
def test_a_buffer_reads_channels_and_changes_in_training(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, dtype=torch.float64)
    gated = prunegate.wrap(Buffered(READS[name]).double().eval(), x)
    assert "a" in {group.name for group in gated.groups}, [p.reason for p in gated.pinned]
    gated.magnitudes()
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    compact = prunegate.compact(gated).model
    for training in (False, True, True, False):
        a, b = gated.train(training)(x), compact.train(training)(x)
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-12)


class Fixed(nn.Linear):
    """Holds as an attribute what its code has as a number: which of its two widths goes into it is not written."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).view(-1, 24).relu()


def test_a_size_attribute_that_would_grow_is_passed_over() -> None:
    """As in spandrel's SPAN: the layer is cut to other widths before its attributes are tried."""
    model = nn.Sequential(nn.Linear(5, 24), Fixed(24, 24), nn.Linear(24, 3)).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    gated = prunegate.wrap(model, x)
    gated.set_masks({g.name: torch.arange(24) % (2 + n) == 0 for n, g in enumerate(gated.groups)})
    torch.testing.assert_close(prunegate.compact(gated).model(x), gated(x), rtol=1e-9, atol=1e-12)


class MaskedAutoencoder(nn.Module):
    """Draws which tokens it hides in eval mode as well; the width stands in a repeat of the index alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 12), nn.Linear(12, 4)
        self.block = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 12))
        self.hidden = nn.Parameter(torch.randn(1, 1, 12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        samples, length, width = x.shape
        order = torch.rand(samples, length, device=x.device).argsort(1)
        x = torch.gather(x, 1, order[:, : length // 2].unsqueeze(-1).repeat(1, 1, width))
        x = torch.cat([x + self.block(x), self.hidden.repeat(samples, length - length // 2, 1)], 1)
        y: torch.Tensor = self.head(torch.gather(x, 1, order.argsort(1).unsqueeze(-1).repeat(1, 1, width)))
        return y


def test_what_a_model_draws_in_eval_mode_is_no_fault_of_the_cut() -> None:
    gated = assert_exact(MaskedAutoencoder(), noise(2, 8, 6), (noise(3, 8, 6),))
    assert units(gated) == {"stem": 12, "block.0": 16}


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        y = torch.cond(y.sum() > 0, lambda t: t * 2, lambda t: t - 1, (y,))
        z: torch.Tensor = self.b(y)
        return z


def test_code_that_is_compiled_within_the_forward_is_refused_in_a_few_lines() -> None:
    with pytest.raises(TraceError, match=r"found code that torch compiles while the forward runs \(torch.cond") as told:
        prunegate.wrap(Conditional(), torch.randn(2, 5))
    assert len(str(told.value)) < 400


def test_a_long_error_of_a_models_own_is_cut_short() -> None:
    class Fails(Conditional):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("x" * 5000 + "\nand more")

    with pytest.raises(TraceError, match=r"failed with ValueError: x+ ...") as told:
        prunegate.wrap(Fails(), torch.randn(2, 5))
    assert len(str(told.value)) < 600


def test_a_module_may_hold_an_array_of_numpy() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.scale = nn.Linear(5, 8), nn.Linear(8, 3), np.array([2.0, 3.0])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.b(self.a(x) * float(self.scale[0]))
            return y

    assert units(assert_exact(Scaled(), noise(2, 5), (noise(3, 5),))) == {"a": 8}


@pytest.mark.parametrize("looks", [False, True])
def test_a_model_may_write_into_its_input(looks: bool) -> None:
    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x *= 255
            if looks and bool((x > 1e9).any()):  # followed on real tensors
                return self.b(self.a(x).tanh())
            y: torch.Tensor = self.b(self.a(x))
            return y / 255

    inputs = noise(2, 5)
    before = inputs.clone()
    assert units(assert_exact(Scales(), inputs, (noise(3, 5),))) == {"a": 8}
    assert torch.equal(inputs, before)


class LayerDrop(nn.Module):
    """Skips some of its layers in training, by chance; their code holds sizes as numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 12), nn.Linear(12, 3)
        self.layers = nn.ModuleList([HeadsOfThree() for _ in range(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x > 1e9).any()):  # so it is followed on real tensors, which draw real numbers
            x = x.tanh()
        x = self.stem(x)
        for layer in self.layers:
            if not self.training or torch.rand([]) > 0.5:
                x = layer(x)
        y: torch.Tensor = self.head(x)
        return y


class HeadsOfThree(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 18), nn.Linear(18, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.dropout(self.a(x), 0.1, self.training).view(*x.shape[:2], 3, 6).softmax(1)
        return x + self.b(y.reshape(*x.shape[:2], 18))


def test_layers_that_are_skipped_by_chance_are_skipped_alike_in_every_run_that_is_followed() -> None:
    gated = assert_exact(LayerDrop(), noise(2, 7, 5), (noise(3, 4, 5),), seeds=3)
    assert units(gated) == {"stem": 12, **{f"layers.{i}.a": 6 for i in range(4)}}
    assert not gated.fix_ups.replays
