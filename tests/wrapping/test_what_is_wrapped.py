"""What users hand to `wrap`, and where they call it: taken as they mean it, or refused with the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import prunegate
from tests.conftest import random_masks


def chain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))


def gated_and_compact(model: nn.Module, inputs: torch.Tensor) -> tuple[prunegate.GatedModel, nn.Module]:
    gated = prunegate.wrap(model, inputs)
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    return gated, prunegate.compact(gated).model


@pytest.fixture
def double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (lambda: torch.relu, "found a builtin_function_or_method, expected a torch.nn.Module"),
        (lambda: prunegate.wrap(chain(), torch.randn(2, 4)), r"found a gated model.*or wrap gated.unwrap"),
        (lambda: torch.jit.script(chain()), r"found TorchScript in the model.*convert the compact one"),
        (lambda: nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.Linear(4, 4))), "found TorchScript in 1,"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_what_cannot_be_taken_apart_is_refused(model: Callable[[], Any], found: str) -> None:
    with pytest.raises(prunegate.TraceError, match=found):
        prunegate.wrap(model(), torch.randn(2, 4))


def test_of_a_compiled_model_the_module_behind_it_is_wrapped() -> None:
    model = chain()
    gated, compact = gated_and_compact(torch.compile(model, backend="eager"), torch.randn(2, 4))
    assert [group.name for group in gated.groups] == ["0", "2"]
    assert type(gated.unwrap()) is type(compact) is nn.Sequential


@pytest.mark.usefixtures("double_by_default")
def test_double_precision_by_default() -> None:
    inputs = torch.randn(2, 4)
    gated, compact = gated_and_compact(chain(), inputs)
    torch.testing.assert_close(compact(inputs), gated.eval()(inputs), rtol=1e-12, atol=0)


@pytest.mark.parametrize("made_inside", [False, True])
def test_what_is_made_in_inference_mode_can_be_trained(made_inside: bool) -> None:
    model, inputs = chain(), torch.randn(2, 4)
    with torch.inference_mode():
        if made_inside:
            model, inputs = chain(), torch.randn(2, 4)
        gated, compact = gated_and_compact(model, inputs)
    gated.release_masks()
    for each in (gated, compact):
        each.train()(torch.randn(3, 4)).sum().backward()
        assert all(parameter.grad is not None for parameter in each.parameters())
