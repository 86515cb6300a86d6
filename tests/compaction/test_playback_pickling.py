"""Compact models with any fix-ups can be copied, pickled and sent to another process."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import prunegate
from prunegate.groups import copy_with
from tests.conftest import random_masks, randomise
from tests.wrapping.test_structures import BLOCKS, WIDTH, Model


@dataclass
class Output:
    hidden: torch.Tensor
    pair: tuple[torch.Tensor, int]


class Heads(nn.Module):
    """Attention heads whose sizes are numbers in the code, which has to be fixed up."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.q(x).view(x.shape[0], -1, 4, 6).softmax(-1)
        angle = torch.arange(WIDTH, dtype=x.dtype, device=x.device)
        return self.o(y.reshape(x.shape[0], -1, 24)) + torch.where(angle > 3, angle, float("inf")).clamp(max=9)


class HeadsWithOutput(Heads):
    def forward(self, x: torch.Tensor) -> Output:
        y = super().forward(x)
        return Output(y, (y.mean(1), 3))


class TakesOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = HeadsWithOutput()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.inner(x)
        return output.hidden + output.pair[0][:, None]


class WithState(Heads):
    """A user's class that leaves out of its state what it makes anew."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: Any = {"function": lambda x: x}

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "cache"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.cache = {"made": "anew"}


class WithReduce(Heads):
    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (), {**self.__dict__, "reduced": True}


class WithReduceByName(Heads):
    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return WithReduceByName, (), {**self.__dict__, "reduced": True}


class WithArguments(Heads):
    made_with: ClassVar[list[tuple[Any, ...]]] = []

    def __new__(cls, *args: Any) -> WithArguments:
        cls.made_with.append(args)
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        super().__init__()

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return ("given",), {}


class Cyclic(nn.Module):
    """Children that lead back to their replayed parent."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = Heads()
        self.heads.q.owner = [self.heads]  # type: ignore[assignment]
        self.heads.method = self.heads.extra_repr  # type: ignore[assignment]

    def forward(self, x: torch.Tensor) -> Any:
        return self.heads(x)


class Whole(nn.Module):
    """The model itself is replayed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x).view(-1, 8, 4, 6)).reshape(-1, 8, 24))


# The own code of a grouped query serves, and "whole" is only made as a graph.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "grouped query": lambda: Model(BLOCKS["grouped query"][0]()),
    "torch's encoder layer": lambda: Model(BLOCKS["torch's encoder layer"][0]()),
    "heads": lambda: Model(Heads()),
    "two of a kind": lambda: Model(nn.Sequential(Heads(), Heads())),
    "output of a class": lambda: Model(TakesOutput()),
    "own state": lambda: Model(WithState()),
    "own reduce": lambda: Model(WithReduce()),
    "own reduce, by name": lambda: Model(WithReduceByName()),
    "own arguments": lambda: Model(WithArguments()),
    "cycle": lambda: Model(Cyclic()),
    "whole": Whole,
}
X = torch.randn(3, 8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def compacted(name: str, backend: str = "module", replayed: bool = False) -> prunegate.Compaction:
    model = randomise(MODELS[name]()).double().eval()
    gated = prunegate.wrap(model, X[:2], backend=backend)
    if replayed:  # the last resort, where the module's own code would serve
        gated.fix_ups = replace(gated.fix_ups, replayed=gated.fix_ups.resized, resized=())
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    return prunegate.compact(gated)


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


def pickled(model: nn.Module, protocol: int | None = None) -> nn.Module:
    loaded: nn.Module = pickle.loads(pickle.dumps(model, protocol))
    return loaded


def same(model: nn.Module, other: nn.Module) -> bool:
    with torch.no_grad():
        return torch.equal(model(X), other(X))


def check(model: nn.Module) -> None:
    """All ways to have it again, and twice in a row, give what computes bit for bit the same."""
    for way in (pickled, saved_and_loaded, copy.deepcopy, copy.copy, copy_with):
        again = way(model)
        assert same(again, model), way
        assert same(way(again), model), way
        if way is not copy.copy:
            assert not {id(p) for p in again.parameters()} & {id(p) for p in model.parameters()}
        if not isinstance(model, torch.fx.GraphModule):
            for (path, one), (_, other) in zip(model.named_modules(), again.named_modules(), strict=True):
                assert type(one).__name__ == type(other).__name__, path
                assert type(one).__mro__[-3:] == type(other).__mro__[-3:], path


@pytest.mark.parametrize("replayed", [False, True], ids=["resized", "replayed"])
@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("whole", "grouped query")])
def test_a_fixed_up_model_computes_bitwise_the_same_when_copied_or_pickled(name: str, replayed: bool) -> None:
    result = compacted(name, replayed=replayed)
    if name != "torch's encoder layer":  # its attention has a form of its own
        assert result.fix_ups.replayed if replayed else not result.fix_ups.is_plain
    check(result.model.eval())
    assert isinstance(pickled(result.model), type(MODELS[name]()))


@pytest.mark.parametrize("name", ["grouped query", "torch's encoder layer", "heads", "output of a class", "whole"])
def test_a_graph_computes_bitwise_the_same_when_copied_or_pickled(name: str) -> None:
    model = compacted(name, "graph").model.eval()
    assert isinstance(model, torch.fx.GraphModule)
    check(model)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_serves(protocol: int) -> None:
    model = compacted("heads").model.eval()
    assert same(pickled(model, protocol), model)


def test_a_users_own_way_to_be_pickled_is_kept() -> None:
    with_state = compacted("own state").model
    for again in (pickled(with_state), copy.deepcopy(with_state), copy_with(with_state)):
        assert again.block.cache == {"made": "anew"}  # type: ignore[union-attr]
    for name in ("own reduce", "own reduce, by name"):
        assert pickled(compacted(name).model).block.reduced  # type: ignore[union-attr]
    pickled(compacted("own arguments").model)
    assert WithArguments.made_with[-1] == ("given",)


def test_a_cycle_stays_one() -> None:
    heads: Any = pickled(compacted("cycle").model).block.heads  # type: ignore[union-attr]
    assert heads.q.owner[0] is heads
    assert heads.method.__self__ is heads


def test_a_copy_follows_its_own_weights_and_can_be_compacted_again() -> None:
    model = compacted("heads").model.eval()
    again = pickled(model)
    with torch.no_grad():
        again.block.o.weight.zero_()  # type: ignore[union-attr, operator]
    assert not same(again, model)
    gated = prunegate.wrap(pickled(model), X[:2])
    gated.set_masks(random_masks(gated.groups, 0.7, 1))
    check(prunegate.compact(gated).model.eval())


def test_an_instance_of_a_subclass_is_copied_as_what_it_is() -> None:
    gated = prunegate.wrap(compacted("heads").model, X[:2])
    gated.set_masks(random_masks(gated.groups, 0.5, 1))
    assert same(copy.deepcopy(gated.eval()), gated)


def outputs_and_names(model: nn.Module, x: torch.Tensor) -> tuple[list[Any], list[str]]:
    with torch.no_grad():
        return model(x).tolist(), list(model.state_dict())


@pytest.mark.parametrize("backend", ["module", "graph"])
def test_a_spawned_process_computes_the_same(backend: str) -> None:
    model = compacted("output of a class", backend).model.eval()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(outputs_and_names, model, X).result(timeout=120)
    assert found == outputs_and_names(model, X)
