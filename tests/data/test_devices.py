"""Batches on a GPU, on a machine without one: fake tensors say they are there, and cannot be read or mixed up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from prunegate.data import Batch, DataSettings, ImageData, Share, augmented, load_data, memory, moving
from prunegate.data.loaded import LoadedData
from prunegate.data.settings import MixupSettings

CUDA = torch.device("cuda", 0)
BOTH = {"mixup_alpha": 0.3, "cutmix_alpha": 1.0}
MIXES: list[dict[str, Any]] = [
    {},
    BOTH,
    {**BOTH, "mode": "elem", "prob": 0.7},
    {"cutmix_minmax": [0.2, 0.6], "mode": "pair"},
]


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the test all tensors are fake, and may be on a GPU. Fake memory cannot be pinned."""
    monkeypatch.setattr(moving, "_pinned", lambda tensor: tensor)
    with FakeTensorMode():
        yield


def images(device: torch.device = CUDA, held: torch.device = CUDA, **changed: Any) -> ImageData:
    """Images that are held on one device, for batches on another."""
    tensors = (
        torch.zeros(50, 3, 16, 16, device=held),
        torch.zeros(50, dtype=torch.int64, device=held),
        torch.zeros(20, 3, 16, 16, device=held),
        torch.zeros(20, dtype=torch.int64, device=held),
    )
    given: dict[str, Any] = {"num_classes": 4, "batch_size": 8, "augment": "shift_flip", "device": device}
    return ImageData(*tensors, **(given | changed))


def assert_there(batch: Batch) -> None:
    assert batch.inputs.device == batch.labels.device == CUDA
    assert batch.indices.device.type == "cpu"


def test_fake_tensors_refuse_to_be_read_or_mixed_up(fake_cuda: None) -> None:
    there = torch.zeros(3, device=CUDA)
    with pytest.raises(DataDependentOutputException):
        float(there.sum())
    with pytest.raises(RuntimeError, match="on the same device"):
        there + torch.zeros(3)


@pytest.mark.parametrize("augment", ["none", "shift", "shift_flip"])
@pytest.mark.parametrize("mix", MIXES, ids=["unmixed", "batch", "elem", "pair"])
@pytest.mark.parametrize("held", ["cuda", "cpu"])
def test_batches_are_made_where_they_are_wanted_and_nothing_waits(
    fake_cuda: None, held: str, mix: dict[str, Any], augment: str
) -> None:
    where = CUDA if held == "cuda" else torch.device("cpu")
    data = images(held=where, augment=augment, mixup=MixupSettings(**mix))
    batches = list(data.train_batches(0, 0, first=2, share=Share(1, 2)))
    assert [batch.inputs.shape for batch in batches] == [(4, 3, 16, 16)] * 4
    for batch in (*batches, *data.test_batches()):
        assert_there(batch)


def test_images_may_be_augmented_on_any_device(fake_cuda: None) -> None:
    made = augmented(torch.zeros(4, 1, 8, 8, device=CUDA), "shift_flip", torch.Generator())
    assert (made.device, made.shape) == (CUDA, (4, 1, 8, 8))


@pytest.mark.parametrize("room", [True, False])
def test_images_move_to_a_device_that_has_room(fake_cuda: None, monkeypatch: pytest.MonkeyPatch, room: bool) -> None:
    bytes_held = 70 * (3 * 16 * 16 * 4 + 8)
    free = 3 * bytes_held if room else 3 * bytes_held - 3
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10 * free))
    data = images(device=torch.device("cpu"), held=torch.device("cpu")).to(CUDA)
    assert data.train_images.device.type == data.test_labels.device.type == ("cuda" if room else "cpu")
    assert_there(next(iter(data.train_batches(0, 0))))


def test_samples_from_files_are_read_to_pinned_memory_for_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data(DataSettings(name="tests.data.own_sets_for_tests:tensors", batch_size=4))
    assert isinstance(data, LoadedData)
    pins: list[bool] = []

    class Loader(torch.utils.data.DataLoader[Any]):
        def __init__(self, *arguments: Any, pin_memory: bool, **more: Any) -> None:
            pins.append(pin_memory)
            super().__init__(*arguments, **more)

    monkeypatch.setattr("prunegate.data.workers.DataLoader", Loader)
    moves: list[torch.device] = []
    monkeypatch.setattr("prunegate.data.loaded.moved", lambda tensor, device: moves.append(device) or tensor)
    list(data.train_batches(0, 0))
    assert set(moves) == {torch.device("cpu")}
    moves.clear()
    list(data.to(CUDA).train_batches(0, 0))
    list(data.to(CUDA).test_batches())
    assert set(moves) == {CUDA}
    assert pins == [False, True, True]


@pytest.mark.parametrize("mode", ["elem", "pair"])
@pytest.mark.parametrize("alphas", [BOTH, {"mixup_alpha": 0.5}, {"cutmix_alpha": 0.5}, {"cutmix_minmax": [0.2, 0.6]}])
@pytest.mark.parametrize("correct_lam", [True, False])
def test_whole_batches_are_mixed_as_timm_mixes_images(
    monkeypatch: pytest.MonkeyPatch, alphas: dict[str, Any], mode: str, correct_lam: bool
) -> None:
    from timm.data import Mixup

    mix = MixupSettings(**alphas, mode=mode, prob=0.8, correct_lam=correct_lam, label_smoothing=0.1)
    settings = DataSettings(name="digits", image_size=12, train_limit=96, batch_size=32, mixup=mix)
    found = list(load_data(settings).train_batches(3, 1))
    monkeypatch.setattr("prunegate.data.mixup.WholeBatchMixup", Mixup)
    expected = list(load_data(settings).train_batches(3, 1))
    assert len(found) == 3
    assert all(
        torch.equal(a, b) for ours, timms in zip(found, expected, strict=True) for a, b in zip(ours, timms, strict=True)
    )


def test_epoch_in_memory_holds_what_a_loop_over_its_batches_draws() -> None:
    """The order first, then for each batch its shifts and its mirrors, from one generator."""
    data = load_data(DataSettings(name="digits", image_size=16, train_limit=40, batch_size=8, augment="shift_flip"))
    assert isinstance(data, ImageData)
    generator = memory.order_of(5, 2)
    order = torch.randperm(40, generator=generator)
    for number, batch in enumerate(data.train_batches(5, 2)):
        some = order[8 * number : 8 * number + 8]
        assert torch.equal(batch.indices, some)
        assert torch.equal(batch.inputs, augmented(data.train_images[some], "shift_flip", generator))


def test_test_images_survive_a_model_that_changes_its_inputs() -> None:
    data = load_data(DataSettings(name="digits", image_size=8))
    for batch in data.test_batches():
        batch.inputs.zero_()
    assert all(bool(batch.inputs.any()) for batch in data.test_batches())
