"""Every form in which loaders yield batches, and errors for other forms."""

from __future__ import annotations

import copy
from collections import UserDict, namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from prunegate import GatedModel, GateSteps, LoopError, wrap
from prunegate.training import reestimate_batch_norm
from tests.conftest import SmallNet


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(4, 8)
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, image: torch.Tensor, table: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.head(functional.relu(self.norm(self.first(image) + scale * self.second(table))))


class OfADict(nn.Module):
    """Takes one dict as its only argument."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TwoInputs()

    def forward(self, sample: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.inner(sample["image"], sample["table"])


def images(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 3, 8, 8, generator=generator), torch.randint(4, (16,), generator=generator)


def pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 6, generator=generator), torch.randn(16, 4, generator=generator)


def steps_of(model: nn.Module, inputs: Any) -> GateSteps:
    gated = wrap(model, inputs)
    with torch.no_grad():
        for name, buffer in gated.model.named_buffers():
            if "running" in name:
                buffer.fill_(0.5)
    return GateSteps(gated, 0.5, steps=10)


def statistics(gated: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in gated.state_dict().items() if "running" in name or "num_b" in name}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def finished(model: nn.Module, inputs: Any, batches: Any) -> dict[str, torch.Tensor]:
    steps = steps_of(copy.deepcopy(model), inputs)
    steps.finish(batches)
    assert steps.gated.gates.are_fixed
    return statistics(steps.gated)


X, Y = images()
Named = namedtuple("Named", "pixels target")

FORMS: dict[str, Callable[[], Any]] = {
    "list of inputs": lambda: list(X.split(8)),
    "tuple of inputs": lambda: X.split(8),
    "generator of inputs": lambda: (part for part in X.split(8)),
    "loader of inputs": lambda: DataLoader(X, 8),  # type: ignore[arg-type]
    "loader of pairs": lambda: DataLoader(TensorDataset(X, Y), 8),
    "loader of triples": lambda: DataLoader(TensorDataset(X, Y, Y), 8),
    "tuples of one": lambda: [(part,) for part in X.split(8)],
    "named tuples": lambda: [Named(X[:8], Y[:8]), Named(X[8:], Y[8:])],
    "labels that are no tensors": lambda: [(part, ["cat"] * 8) for part in X.split(8)],
    "dicts by the name of forward": lambda: [{"label": Y[:8], "x": X[:8]}, {"label": Y[8:], "x": X[8:]}],
    "dicts by names of their own": lambda: [{"y": Y[:8], "picture": X[:8]}, {"y": Y[8:], "picture": X[8:]}],
    "mappings": lambda: [UserDict(x=X[:8]), UserDict(x=X[8:])],
    "dict and labels": lambda: [({"x": X[:8]}, Y[:8]), ({"x": X[8:]}, Y[8:])],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_batches_gives_the_same_statistics(form: str) -> None:
    torch.manual_seed(0)
    model, example = SmallNet(), torch.zeros(2, 3, 8, 8)
    expected = finished(model, example, [X[:8], X[8:]])
    assert expected["model.norm.num_batches_tracked"] == 2
    assert same(expected, finished(model, example, FORMS[form]()))
    assert same(expected, finished(model, {"x": example}, FORMS[form]()))


@pytest.mark.parametrize("batches", [X, {"x": X}])
def test_a_tensor_or_a_dict_is_one_batch(batches: Any) -> None:
    torch.manual_seed(0)
    model, example = SmallNet(), torch.zeros(2, 3, 8, 8)
    assert same(finished(model, example, [X]), finished(model, example, batches))


A, B = pair()


@pytest.mark.parametrize(
    "batch",
    [(A, B), [A, B], (A, B, torch.zeros(16)), {"table": B, "image": A}, {"table": B, "image": A, "label": 1}],
    ids=["tuple", "list", "with labels", "dict", "dict with labels"],
)
@pytest.mark.parametrize("by_name", [False, True])
def test_models_of_several_inputs_take_as_many_as_at_wrap(batch: Any, by_name: bool) -> None:
    torch.manual_seed(0)
    model = TwoInputs()
    example: Any = {"image": A[:2], "table": B[:2]} if by_name else (A[:2], B[:2])
    expected = finished(model, example, [{"image": A, "table": B}])
    assert same(expected, finished(model, example, [batch]))


@pytest.mark.parametrize("batch", [{"image": A, "table": B}, ({"image": A, "table": B}, torch.zeros(16))])
def test_a_model_of_one_dict_gets_it_whole(batch: Any) -> None:
    torch.manual_seed(0)
    model = OfADict()
    inner = finished(model, ({"image": A[:2], "table": B[:2]},), [batch])
    assert float(inner["model.inner.norm.running_mean"].abs().sum()) not in (0.0, 4.0)


def test_plain_models_take_them_too() -> None:
    torch.manual_seed(0)
    model = TwoInputs()
    for batch in ((A, B), (A, B, torch.zeros(16)), {"image": A, "table": B}):
        assert reestimate_batch_norm(model, [batch]) == 1
        torch.testing.assert_close(model.norm.running_mean, (model.first(A) + model.second(B)).mean(0))


def raising() -> Iterator[torch.Tensor]:
    yield X
    raise OSError("the disk is gone")


MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "nothing": (list, LoopError, r"batches: found none in an empty list, expected at least one\. Nothing was changed"),
    "spent generator": (lambda: iter(()), LoopError, r"found none in a tuple_iterator.*can be iterated only once"),
    "empty loader": (lambda: DataLoader(TensorDataset(X[:4], Y[:4]), 8, drop_last=True), LoopError, "found none in a "),
    "no iterable": (
        lambda: 3,
        LoopError,
        "batches: found an int, expected an iterable of batches, such as a DataLoader",
    ),
    "a function": (lambda: lambda: [X], LoopError, "found a function, expected an iterable.*call it and pass"),
    "text": (lambda: "abc", LoopError, "found a str, expected an iterable of batches"),
    "labels first": (lambda: [(Y, X)], LoopError, r"batch 1: the model raised RuntimeError.*of shape \(16,\)"),
    "of another size": (
        lambda: [X, X[:, :2]],
        LoopError,
        r"batch 2: the model raised .*called with a tensor of shape \(16, 2, 8, 8\), expected .*\(2, 3, 8, 8\)",
    ),
    "samples": (lambda: TensorDataset(X, Y), LoopError, r"batch 1.*of shape \(3, 8, 8\).*Pass whole batches"),
    "later form": (
        lambda: [X, "x"],
        LoopError,
        r"found a batch that is a str, expected a tensor of shape \(2, 3, 8, 8\)",
    ),
    "keys of nothing": (lambda: [{"a": Y}], LoopError, "found a batch that is a dict with the keys a, expected"),
    "not finite": (lambda: [X * torch.nan, X / 0], LoopError, "none of 2 batches is finite"),
    "iterator that raises": (raising, OSError, "the disk is gone"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("frozen", [False, True])
def test_after_a_mistake_all_is_as_before(mistake: str, frozen: bool) -> None:
    make, kind, message = MISTAKES[mistake]
    torch.manual_seed(0)
    steps = steps_of(SmallNet(), torch.zeros(2, 3, 8, 8))
    gated = steps.gated.train()
    if frozen:
        gated.set_masks({group.name: torch.arange(group.num_units) < 3 for group in gated.groups})
    before = copy.deepcopy(gated.state_dict())
    with pytest.raises(kind, match=f"(?s){message}"):
        steps.finish(make())
    after = gated.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert gated.gates.are_fixed == frozen
    assert all(module.training for module in gated.modules())
    assert gated.model.norm.momentum == 0.1
    steps.finish([X])  # and nothing stands in the way of doing it right
    assert_meets(gated)


def assert_meets(gated: GatedModel) -> None:
    assert gated.realised_cost() <= 0.5 * gated.dense_cost()


def test_models_without_batch_norm_need_no_batch() -> None:
    gated = wrap(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), torch.zeros(2, 8))
    GateSteps(gated, 0.5, steps=10).finish(iter(()))
    assert gated.gates.are_fixed
