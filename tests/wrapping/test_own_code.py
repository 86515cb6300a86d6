"""Modules whose code holds sizes go on to run their own code: whatever that does, at any size, wherever it is sent."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import prunegate
from prunegate.compaction.equivalence import Side, difference, run
from prunegate.groups import ExampleInputs
from tests.conftest import random_masks, randomise

WIDTH = 24


class Block(nn.Module):
    """Base of the blocks below: from and to a stream of width 24, over any number of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(WIDTH, 36), nn.Linear(36, WIDTH)


class Literals(Block):
    """Heads by literal numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        return x + self.o(self.q(x).view(b, n, 6, 6).softmax(1).reshape(b, n, 36))


class Branches(Block):
    """Another path through other literals in training, and one that only long inputs take."""

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        b, n, _ = x.shape
        y = self.q(x)
        y = y.reshape(b, n, 3, 12).tanh().reshape(b, n, 36) * 0.5 if self.training else y.view(b, n, 36)
        if n > 8:
            y = y.unflatten(-1, (6, 6)).flatten(2).roll(1, 1)
        return x + self.o(y * scale)


class ScaleOfShape(Block):
    """A scale that the code makes of the number of channels, which has to stay that of the dense model."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.q(x)
        return x + self.o(y.view(*y.shape[:2], 6, 6).flatten(2) * (y.shape[-1] // 6) ** -0.5 / y.shape[-1])


class Parts(Block):
    """Unequal parts by split, slices, strides, narrow and select."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.q(x).split((10, 26), dim=-1)
        third = torch.cat([first[..., 4:], first[..., :4], second.narrow(-1, 5, 21), second[..., :5]], -1)
        return x + self.o(torch.cat([third[..., ::2], third[..., 1::2]], -1).tanh())


class Lookalikes(Block):
    """Two splits that look the same, of channels that go apart from each other."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(WIDTH, 36)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = []
        for layer in (self.q, self.second):
            parts += layer(x).split((10, 26), dim=-1)
        return x + self.o(torch.cat([parts[0], parts[3]], -1).tanh() + torch.cat([parts[2], parts[1]], -1))


class Tables(Block):
    """Tensors that the code makes as large as its channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.q(x) + torch.arange(36, dtype=x.dtype, device=x.device) / 36
        y = y + torch.ones(36, dtype=x.dtype) * torch.linspace(0, 1, 36, dtype=x.dtype)
        return x + self.o(y * x.new_full((1, 1, 36), 0.5))


class Drawn(Block):
    """Noise of its own, one number for each channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(36, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
        return x + self.o(self.q(x) + noise)


class Loop(Block):
    """As many steps as there are tokens, each with products of what was made before."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.q(x)
        state = y[:, 0]
        found = []
        for place in range(y.shape[1]):
            state = state.view(-1, 36) * 0.5 + y[:, place]
            found.append(torch.matmul(state.unsqueeze(1), self.o.weight.t()).squeeze(1))
        return x + torch.stack(found, 1)


class Scan(Block):
    """A product of two activations over gated channels at each token: masked calls in a loop of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(WIDTH, 36)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, z = self.q(x), self.second(x)
        steps = [torch.matmul(y[:, i].unsqueeze(1), z[:, i].unsqueeze(2)).squeeze(2) for i in range(x.shape[1])]
        return x * torch.stack(steps, 1) + self.o(y * z)


class Checkpointed(Block):
    """Its own method run again in the backward pass, when its forward has long ended."""

    def body(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        return self.o(self.q(x).view(b, n, 6, 6).softmax(1).reshape(b, n, 36))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + checkpoint(self.body, x, use_reentrant=False)


def merged(x: torch.Tensor) -> torch.Tensor:
    """A helper outside of the class, with a literal in it."""
    return x.reshape(x.shape[0], -1, 36)


class Helped(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.o(merged(self.q(x).view(x.shape[0], -1, 6, 6).softmax(1)))


class Straight(torch.autograd.Function):
    """Rounds, with the gradient of what was there before."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient * 2


class OwnBackward(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = Straight.apply(self.q(x).view(*x.shape[:2], 6, 6))  # type: ignore[no-untyped-call]
        return x + self.o(y.reshape(*x.shape[:2], 36))


class NoGrad(Block):
    """Part of it without gradients."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.q(x).view(*x.shape[:2], 6, 6)
        with torch.no_grad():
            size = y.abs().amax(1, keepdim=True)
        return x + self.o((y / (1 + size)).reshape(*x.shape[:2], 36))


class Chosen(Block):
    """One of its methods serves as its forward, chosen when it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = self.by_heads

    def by_heads(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        return x + self.o(self.q(x).view(b, n, 6, 6).softmax(1).reshape(b, n, 36))


class Nested(nn.Module):
    """A block with literals that calls another one whose calls look like its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.q, self.o = Literals(), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        y = self.inner(self.q(x).view(b, n, 4, 6).softmax(1).reshape(b, n, 24))
        return x + self.o(y)


class Heads(nn.Module):
    """A layer without weights that says by itself what its state is, as einops' layers do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], *LITERAL)

    def __getstate__(self) -> dict[str, Any]:
        return {"width": self.width}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


LITERAL = (6, 6)


class OwnState(Block):
    def __init__(self) -> None:
        super().__init__()
        self.split = Heads(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.o(self.split(self.q(x)).softmax(1).flatten(2))


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    cls.__name__: cls
    for cls in (
        *(
            Literals,
            Branches,
            ScaleOfShape,
            Parts,
            Lookalikes,
            Tables,
            Drawn,
            Loop,
            Scan,
            Checkpointed,
            Helped,
            OwnBackward,
            NoGrad,
        ),
        *(Chosen, Nested, OwnState),
    )
}


class Model(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(5, WIDTH), block, nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor, **arguments: Any) -> torch.Tensor:
        return self.head(self.block(self.stem(x).tanh(), **arguments))


def tokens(batch: int = 2, length: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch * 100 + length)
    return torch.randn(batch, length, 5, dtype=torch.float64, generator=generator)


def cut(name: str, seed: int = 0) -> tuple[prunegate.GatedModel, prunegate.Compaction]:
    gated = prunegate.wrap(randomise(Model(BLOCKS[name]())).double().eval(), tokens())
    gated.set_masks(random_masks(gated.groups, 0.5, seed))
    return gated, prunegate.compact(gated)


def apart(gated: prunegate.GatedModel, result: prunegate.Compaction, x: torch.Tensor, training: bool) -> float:
    given = ExampleInputs.of(x)
    first = run(Side(gated, gated.model), given, training, gradients=True)
    second = run(Side.of(result.model), given, training, gradients=True)
    return difference(first, second, result.plan.tensors).max_rel


@pytest.mark.parametrize("name", BLOCKS)
def test_own_code_is_exact_in_either_mode_at_any_size(name: str) -> None:
    gated, result = cut(name)
    assert any(member.tensor == "block.q.weight" for group in gated.groups for member in group.members)
    assert not result.fix_ups.replays
    assert not gated.limits
    for batch, length in ((2, 7), (3, 7), (2, 11), (1, 5), (5, 20)):
        for training in (False, True):
            assert apart(gated, result, tokens(batch, length), training) <= 1e-9, (batch, length, training)


@pytest.mark.parametrize("name", BLOCKS)
def test_it_is_the_same_when_pickled_copied_compiled_and_exported(name: str) -> None:
    _, result = cut(name)
    model, x = result.model.eval(), tokens(3, 11)
    with torch.no_grad():
        expected = model(x)
        for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            assert torch.equal(again(x), expected)
            assert type(again.block).__name__ == type(model.block).__name__
            assert isinstance(again.block, BLOCKS[name])  # type: ignore[arg-type]
        if name not in ("Drawn", "Checkpointed"):  # which torch's compiler leaves the graph for, or refuses
            torch._dynamo.reset()  # the forward around the block is the same for all of these
            compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
            torch.testing.assert_close(compiled(x), expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", BLOCKS)
def test_it_is_saved_as_a_plan_and_cut_again(name: str, tmp_path: Path) -> None:
    _, result = cut(name)
    result.save(tmp_path / "compact.safetensors")
    loaded = prunegate.load(tmp_path / "compact.safetensors", model=Model(BLOCKS[name]()).double())
    x = tokens(3, 11)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(x), result.model.eval()(x), rtol=0, atol=0)
    again = prunegate.wrap(result.model.eval(), tokens())
    again.set_masks(random_masks(again.groups, 0.7, 1))
    twice = prunegate.compact(again)
    # What was picked from a table is not picked from again: such a block is replayed, and says so.
    assert not twice.fix_ups.replays or (name == "Tables" and again.limits)
    for length in (7,) if twice.fix_ups.replays else (7, 12):
        assert apart(again, twice, tokens(3, length), training=False) <= 1e-9


def test_arguments_left_out_when_it_was_traced_are_heeded() -> None:
    gated, result = cut("Branches")
    x = tokens(3, 11)
    with torch.no_grad():
        found, expected = result.model.eval()(x, scale=3.0), gated.eval()(x, scale=3.0)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(found, result.model(x))


def test_a_training_step_moves_both_alike() -> None:
    gated, result = cut("Checkpointed")
    apart_before = apart(gated, result, tokens(4, 9), training=True)
    for model in (gated, result.model):
        optimizer = torch.optim.SGD((p for n, p in model.named_parameters() if "logits" not in n), 0.1)
        model.train()(tokens(4, 9)).square().mean().backward()
        optimizer.step()
    assert apart_before <= 1e-9
    assert apart(gated, result, tokens(2, 5), training=False) <= 1e-9


class Mixed(nn.Module):
    """A gated width that is normalised by hand, with a backward that counts on all channels."""

    class Normalise(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            y = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            ctx.save_for_backward(x)
            return y

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            (x,) = ctx.saved_tensors
            scale = (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
            return scale * (gradient - x * scale.square() * (gradient * x).mean(-1, keepdim=True))

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.Normalise.apply(self.a(x))  # type: ignore[no-untyped-call]
        return self.c(F.relu(self.b(y)))


def test_a_backward_that_counts_on_all_channels_is_found_by_its_gradients() -> None:
    """Outputs agree; gradients do not, so those channels stay."""
    gated = prunegate.wrap(randomise(Mixed()).double().eval(), tokens())
    assert [group.name for group in gated.groups] == ["b"]
    assert any(pinned.name == "a" and "gradients" in pinned.reason for pinned in gated.pinned)
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    assert apart(gated, prunegate.compact(gated), tokens(3), training=True) <= 1e-9
