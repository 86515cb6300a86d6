"""Recovery after hardening, on real images."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from torch import nn

import prunegate
from prunegate import LoopError
from prunegate.data import Data, DataSettings, load_data
from prunegate.training import TrainingPlan, evaluate, fit
from tests.conftest import SmallNet


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data(DataSettings(name="digits", image_size=8, batch_size=64))


@pytest.fixture(scope="module")
def dense(digits: Data) -> nn.Module:
    torch.manual_seed(0)
    model = VisionTransformer(8, 2, 1, 10, embed_dim=32, depth=2, num_heads=2)
    plan = TrainingPlan("dense", 25, 3e-3, "adamw", weight_decay=0.05)
    for _ in fit(model, lambda epoch: digits.train_batches(0, epoch), digits.steps_per_epoch, plan, lambda _: 0.0):
        pass
    return model.eval()


def by_magnitude(dense: nn.Module, fraction: float) -> prunegate.GatedModel:
    gated = prunegate.wrap(dense, torch.zeros(2, 1, 8, 8))
    gated.gates.start_at(0.5, gated.magnitudes())
    gated.harden(prunegate.Budget("macs", fraction))
    return gated.eval()


def test_a_transformer_gets_most_of_its_accuracy_back(digits: Data, dense: nn.Module) -> None:
    gated = by_magnitude(dense, 0.5)
    whole, hardened = (evaluate(model, digits.test_batches()) for model in (dense, gated))
    found = prunegate.recover(gated, lambda: digits.train_batches(0, 0), dense)
    assert found.refitted
    assert found.layers == 10
    assert found.refitted_loss < found.loss
    assert whole > 0.9
    assert evaluate(gated, digits.test_batches()) > hardened + 0.5 * (whole - hardened)
    assert prunegate.compact(gated).certificate.float64.max_rel <= 1e-9


def test_weights_that_are_better_as_they_are_stay(digits: Data, dense: nn.Module) -> None:
    torch.manual_seed(1)
    stranger = VisionTransformer(8, 2, 1, 10, embed_dim=32, depth=2, num_heads=2)  # knows nothing of digits
    gated = by_magnitude(dense, 0.9)
    before = copy.deepcopy(gated.state_dict())
    found = prunegate.recover(gated, lambda: digits.train_batches(0, 0), stranger)
    assert not found.refitted
    assert found.refitted_loss > found.loss
    after = gated.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if isinstance(before[name], torch.Tensor))


def images(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(32, 3, 8, 8, generator=generator), torch.randint(4, (32,), generator=generator)


def test_without_the_dense_model_only_statistics_are_made_anew() -> None:
    gated = prunegate.wrap(SmallNet(), torch.zeros(2, 3, 8, 8)).eval()
    gated.harden(prunegate.Budget("macs", 0.5))
    weights = copy.deepcopy(dict(gated.model.named_parameters()))
    found = prunegate.recover(gated, lambda: [images(0), images(1)])
    assert (found.refitted, found.layers, math.isnan(found.loss)) == (False, 0, True)
    assert float(gated.model.norm.running_mean.abs().sum()) > 0
    assert all(torch.equal(weights[name], parameter) for name, parameter in gated.model.named_parameters())


def test_batches_that_are_not_finite_are_passed_over() -> None:
    torch.manual_seed(0)
    net = SmallNet()
    bad = images(0)
    bad[0][3, 0, 0, 0] = math.nan
    found = []
    for batches in ([images(1), images(2)], [bad, images(1), bad, images(2)]):
        gated = prunegate.wrap(net, torch.zeros(2, 3, 8, 8)).eval()
        gated.harden(prunegate.Budget("macs", 0.5))
        found.append(prunegate.recover(gated, lambda batches=batches: batches, net))
        assert all(bool(torch.isfinite(p).all()) for p in gated.parameters())
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ({"pixel_values": images(0)[0], "labels": images(0)[1]}, "dict"),
        (images(0)[0], "Tensor"),
        ((images(0)[0],), "tuple of Tensor"),
        ([images(0)[0], "three"], "list of Tensor, str"),
    ],
)
def test_batches_that_are_no_pairs_of_tensors_are_refused(batch: Any, found: str) -> None:
    gated = prunegate.wrap(SmallNet(), torch.zeros(2, 3, 8, 8))
    gated.harden(prunegate.Budget("macs", 0.5))
    with pytest.raises(LoopError, match=f"recover: found a batch that is a {found}, expected"):
        prunegate.recover(gated, lambda: [batch])


def test_masks_that_are_drawn_are_refused() -> None:
    gated = prunegate.wrap(SmallNet(), torch.zeros(2, 3, 8, 8))
    with pytest.raises(LoopError, match=r"recover: found masks that are drawn.*gated\.harden"):
        prunegate.recover(gated, lambda: [images(0)])


def test_it_fits_on_at_most_so_many_samples_and_compares_on_others() -> None:
    seen: list[int] = []

    def loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(len(labels))
        return F.cross_entropy(scores, labels)

    torch.manual_seed(0)
    net = SmallNet()
    gated = prunegate.wrap(net, torch.zeros(2, 3, 8, 8)).eval()
    gated.harden(prunegate.Budget("macs", 0.5))
    prunegate.recover(gated, lambda: [images(0), images(1)], net, samples=20, loss=loss)
    assert seen == [20, 20]


def hardened(net: nn.Module) -> prunegate.GatedModel:
    gated = prunegate.wrap(net, torch.zeros(2, 3, 8, 8)).eval()
    gated.harden(prunegate.Budget("macs", 0.5))
    return gated


class WithoutNorm(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))


def broken_batches() -> Any:
    yield images(0)
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        (lambda: [], LoopError, r"batches: found none in a function, expected at least one\. Nothing was changed"),
        ([], LoopError, "batches: found none in a"),
        (iter([images(0)]), LoopError, "found a list_iterator, which can be iterated only once, expected batches"),
        (lambda: [(images(0)[0][:3], images(0)[1][:3])], LoopError, "recover: found 3 samples.*expected at least 4"),
        (lambda: [(images(0)[0] * math.nan, images(0)[1])], LoopError, "none of 1 batches is finite|found 0 samples"),
        (broken_batches, OSError, "the disk is gone"),
        (3, LoopError, "batches: found an int, expected an iterable"),
    ],
)
@pytest.mark.parametrize("make", [SmallNet, WithoutNorm])
def test_batches_that_are_of_no_use_are_refused_and_change_nothing(
    make: Any, batches: Any, error: type[Exception], message: str
) -> None:
    torch.manual_seed(0)
    net = make()
    gated = hardened(net)
    before = copy.deepcopy(gated.state_dict())
    with pytest.raises(error, match=message):
        prunegate.recover(gated, batches, net)
    after = gated.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("make", [SmallNet, WithoutNorm])
def test_no_batches_are_refused_also_without_the_dense_model(make: Any) -> None:
    with pytest.raises(LoopError, match="found none in"):
        prunegate.recover(hardened(make()), list)


def test_lists_and_loaders_will_do_as_well_as_functions() -> None:
    torch.manual_seed(0)
    net = SmallNet()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*images(0)), 16)
    found = [prunegate.recover(hardened(net), batches, net) for batches in (lambda: list(loader), list(loader), loader)]
    assert found[0] == found[1] == found[2]
