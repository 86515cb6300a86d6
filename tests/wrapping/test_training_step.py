"""The compact model goes on where the gated one is: it trains, runs and is handled like the model it came from."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional

import prunegate
from tests.conftest import IS_LONG, random_masks

WITH_BATCH_NORM = (
    "timm/test_resnet",
    "timm/test_byobnet",
    "timm/test_efficientnet",
    "torchvision/mobilenet_v3_small",
    "torchvision/shufflenet_v2_x0_5",
)
WITHOUT = ("timm/test_vit", "timm/test_convnext", "timm/test_nfnet", "timm/test_mambaout", "timm/test_efficientnet_gn")
# As a graph, of each kind of operation one model that has it; all of them in the long profile.
AS_GRAPH = (
    (*WITH_BATCH_NORM, *WITHOUT)
    if IS_LONG
    else (
        "timm/test_resnet",
        "torchvision/mobilenet_v3_small",
        "torchvision/shufflenet_v2_x0_5",
        "timm/test_convnext",
        "timm/test_nfnet",
        "timm/test_efficientnet_gn",
    )
)
CASES = [(name, "module") for name in (*WITH_BATCH_NORM, *WITHOUT)] + [(name, "graph") for name in AS_GRAPH]
RATE = 0.05
SIDE = 64  # of images in pixels: every stage of these models still has several positions


def _model(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    library, _, short = name.partition("/")
    torch.manual_seed(0)
    sized = {"img_size": SIDE} if short == "test_vit" else {}
    made = (
        timm.create_model(short, **sized) if library == "timm" else torchvision.models.get_model(short, num_classes=10)
    )
    for module in made.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        for parameter in made.parameters():  # branches that start at zero would hide what goes wrong in them
            if parameter.dim() < 2:
                parameter.uniform_(0.5, 1.0)
    return made.double(), (3, SIDE, SIDE)


def _gated(name: str, backend: str) -> tuple[prunegate.GatedModel, tuple[int, int, int]]:
    model, size = _model(name)
    gated = prunegate.wrap(model, torch.randn(2, *size, dtype=torch.float64), backend=backend)
    gated.set_masks(random_masks(gated.groups, 0.5, 1))
    return gated, size


def _step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """One step of plain gradient descent in training mode, on weights only."""
    model.train()
    weights = [p for name, p in model.named_parameters() if not name.endswith("logits")]
    functional.cross_entropy(model(images), labels).backward()
    with torch.no_grad():
        for weight in weights:
            if weight.grad is not None:
                weight -= RATE * weight.grad


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_one_step_changes_gated_and_compact_alike(name: str, backend: str) -> None:
    gated, size = _gated(name, backend)
    before = {path: tuple(t.shape) for path, t in gated.dense_copy().state_dict().items()}
    result = prunegate.compact(gated)
    model = result.model
    assert result.backend == backend
    if backend == "module":
        assert isinstance(model, type(_model(name)[0]))
    images, others = (torch.randn(n, *size, dtype=torch.float64) for n in (4, 3))
    labels = torch.tensor([0, 1, 2, 3])

    # Names and forms: those of the dense model, and nothing larger.
    after = {path: tuple(t.shape) for path, t in model.state_dict().items()}
    assert set(after) == set(before)
    assert all(m <= n for path in after for m, n in zip(after[path], before[path], strict=True))

    first = gated.eval()(others).detach(), model.eval()(others).detach()
    _step(gated, images, labels)
    _step(model, images, labels)
    with torch.no_grad():
        assert _relative(gated(images), model(images)) <= 1e-6  # in training mode
        second = gated.eval()(others), model.eval()(others)
    assert _relative(*first) <= 1e-9
    assert _relative(*second) <= 1e-6
    assert _relative(first[0], second[0]) > 1e-6, "the step changed nothing, so it shows nothing"


@pytest.mark.parametrize(
    ("name", "backend"), [(n, b) for n in ("timm/test_byobnet", "timm/test_vit") for b in ("module", "graph")]
)
def test_the_compact_model_is_handled_like_any_module(name: str, backend: str) -> None:
    gated, size = _gated(name, backend)
    model = prunegate.compact(gated).model.eval()
    images = torch.randn(3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = model(images)

        twin = copy.deepcopy(model)
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(model(images), expected), "a copy shares nothing"
        twin.load_state_dict(model.state_dict())
        assert torch.equal(twin(images), expected)

        compiled = torch.compile(model, backend="aot_eager")
        assert _relative(expected, compiled(images)) <= 1e-9

    training = model.train()(images)
    assert all(module.training for module in model.modules())
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        assert not torch.equal(training, expected), "train() must reach the layers"
    with torch.no_grad():
        assert model.eval()(images[:1]).shape[0] == 1
