"""Batches depend on settings, seed, epoch and position: not on workers, history or how many processes share them."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from prunegate.data import Data, DataSettings, Share, load_data
from prunegate.data.settings import MixupSettings
from prunegate.errors import DataError
from tests.data.pictures import folder_data, image_folder, joined, same

OWN = "tests.data.own_sets_for_tests"
MIXUP = {"mixup_alpha": 0.4, "cutmix_alpha": 1.0, "label_smoothing": 0.1}
Make = Callable[..., Data]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(params=["memory", "memory-plain", "folder", "timm-torch", "timm", "own"])
def make(request: pytest.FixtureRequest, pictures: Path) -> Make:
    """Data of one kind in batches of four, five batches in an epoch or so."""
    strong = {"auto_augment": "rand-m9-mstd0.5", "re_prob": 0.5, "color_jitter": 0.4}
    of_kind = {
        "memory": {"name": "digits", "image_size": 8, "augment": "shift_flip", "train_limit": 23},
        "memory-plain": {"name": "digits", "image_size": 8, "train_limit": 20},
        "folder": {"name": "folder", "folder": str(pictures), "image_size": 8, "transform": strong},
        # The same folder under two names of timm's.
        "timm-torch": {"name": "timm/torch/folder", "folder": str(pictures), "image_size": 9},
        "timm": {"name": "timm/folder", "folder": str(pictures), "image_size": 8, "channels": 1},
        "own": {"name": f"{OWN}:tensors"},
    }[request.param]

    def made(**given: object) -> Data:
        return load_data(DataSettings.model_validate({"batch_size": 4, **of_kind, **given}))

    return made


@pytest.mark.parametrize("mixup", [{}, MIXUP], ids=["unmixed", "mixed"])
def test_epoch_from_any_batch_on_is_the_rest_of_the_epoch(make: Make, mixup: dict[str, float]) -> None:
    data = make(mixup=mixup)
    whole = list(data.train_batches(3, 1))
    assert len(whole) == data.steps_per_epoch == 5
    for first in (0, 1, 4):
        assert same(data.train_batches(3, 1, first=first), whole[first:])
    assert list(data.train_batches(3, 1, first=5)) == []
    assert not same(data.train_batches(3, 2), whole)
    assert not same(data.train_batches(4, 1), whole)


def test_batches_leave_and_need_no_global_random_state(make: Make) -> None:
    data = make(mixup=MIXUP)
    whole = list(data.train_batches(0, 0))
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        assert same(data.train_batches(0, 0, first=1), whole[1:])
        assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states


@pytest.mark.parametrize("count", [2, 4])
def test_shares_add_up_to_the_whole(make: Make, count: int) -> None:
    data = make()
    whole = list(data.train_batches(0, 0, first=1))
    parts = [list(data.train_batches(0, 0, first=1, share=Share(rank, count))) for rank in range(count)]
    assert {len(batch.labels) for part in parts for batch in part} == {4 // count}
    assert same(map(joined, zip(*parts, strict=True)), whole)


def test_test_batches_are_dealt_out(make: Make) -> None:
    data = make(batch_size=2)
    whole = list(data.test_batches())
    dealt = [list(data.test_batches(Share(rank, 2))) for rank in range(2)]
    assert sum(map(len, dealt)) == len(whole)
    for rank in range(2):
        assert [b.indices.tolist() for b in dealt[rank]] == [b.indices.tolist() for b in whole[rank::2]]
        assert not dealt[rank] or same(dealt[rank], whole[rank::2])
    assert torch.equal(torch.cat([b.indices for b in whole]), torch.arange(sum(len(b.labels) for b in whole)))


def test_examples_are_the_first_inputs(make: Make) -> None:
    data = make()
    assert data.example_inputs(3).shape == (3, *data.shape)
    assert data.example_inputs(3).dtype == torch.float32
    assert len(data.example_inputs(99_999)) <= 23


def test_mixed_labels_are_probabilities_and_test_labels_are_not(make: Make) -> None:
    data = make(mixup=MIXUP)
    batches = list(data.train_batches(0, 0))
    for batch in batches:
        assert batch.labels.shape == (4, data.num_classes)
        torch.testing.assert_close(batch.labels.sum(1), torch.ones(4))
    assert any((batch.labels.max(1).values < 0.8).any() for batch in batches)
    assert all(batch.labels.dtype == torch.int64 for batch in data.test_batches())
    # Every process mixes what it has, each in its own way.
    one, other = (list(data.train_batches(0, 0, share=Share(rank, 2))) for rank in range(2))
    assert [len(batch.labels) for batch in (*one, *other)] == [2] * 10


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_change_nothing(pictures: Path) -> None:
    strong = {"auto_augment": "rand-m9-mstd0.5", "re_prob": 0.5}
    alone, helped = (folder_data(pictures, transform=strong, mixup=MIXUP, workers=count) for count in (0, 2))
    state = torch.get_rng_state()
    assert same(helped.train_batches(0, 0, first=1), alone.train_batches(0, 0, first=1))
    assert same(helped.test_batches(), alone.test_batches())
    assert torch.equal(torch.get_rng_state(), state)
    # Whoever stops early leaves no workers behind that would disturb the next.
    assert same(islice(helped.train_batches(0, 1), 1), islice(alone.train_batches(0, 1), 1))


def test_memory_epoch_begins_with_one_global_draw_as_it_always_did() -> None:
    data = load_data(DataSettings(name="digits", image_size=8, train_limit=20, batch_size=4))
    torch.manual_seed(0)
    expected = torch.empty((), dtype=torch.int64).random_()
    after = torch.rand(3)
    assert expected is not None
    torch.manual_seed(0)
    list(data.train_batches(0, 0))
    assert torch.equal(torch.rand(3), after)


def test_set_smaller_than_a_batch_is_one_batch_in_uneven_shares(make: Make) -> None:
    data = make(batch_size=24)
    (whole,) = data.train_batches(0, 0)
    assert 20 <= len(whole.labels) <= 23
    parts = [next(iter(data.train_batches(0, 0, share=Share(rank, 8)))) for rank in range(8)]
    assert same([joined(parts)], [whole])


def test_batches_that_cannot_be_shared_are_refused_at_once(make: Make) -> None:
    with pytest.raises(DataError, match=r"batch_size: found 4, expected a multiple of 3.*Set data\.batch_size=6"):
        make().train_batches(0, 0, share=Share(0, 3))
    with pytest.raises(DataError, match=r"found \d+ training samples for 32 processes, expected at least one for each"):
        make(batch_size=32).train_batches(0, 0, share=Share(0, 32))
    with pytest.raises(DataError, match=r"data\.mixup: found a batch of 1 samples in a process, expected an even"):
        make(mixup=MIXUP).train_batches(0, 0, share=Share(1, 4))
    with pytest.raises(DataError, match=r"data\.mixup: found a batch of 5 samples"):
        make(mixup=MIXUP, batch_size=5)
    with pytest.raises(DataError, match=r"data\.mixup: found a batch of 9 samples"):
        load_data(DataSettings(name="digits", train_limit=9, mixup=MixupSettings(mixup_alpha=0.2)))
