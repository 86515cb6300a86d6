"""Workers that are killed: for real, by SIGKILL, as the system does when it is out of memory."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from prunegate.data import Data, DataSettings, load_data
from prunegate.errors import DataError
from tests.data.pictures import same

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
OWN = "tests.data.own_sets_for_tests"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch looks after its workers every five seconds; here ten times a second."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))


def deadly(flag: Path, workers: int, always: bool = False) -> Data:
    arguments = {"flag": str(flag), "always": always}
    settings = DataSettings(name=f"{OWN}:deadly", arguments=arguments, batch_size=4, workers=workers)
    return load_data(settings)


def test_batches_are_those_of_an_undisturbed_epoch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flag = tmp_path / "died"
    found = list(deadly(flag, workers=2).train_batches(1, 0))
    assert flag.exists(), "no worker died"
    assert same(found, deadly(flag, workers=0).train_batches(1, 0))
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith("a data worker died; new ones continue at the same batch: ")


def test_worker_that_always_dies_stops_the_run_with_the_remedy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = deadly(tmp_path / "died", workers=1, always=True)
    with pytest.raises(DataError) as caught:
        list(data.train_batches(1, 0))
    text = str(caught.value)
    assert text.startswith("data.workers: 3 workers died at the same batch: ")
    assert "The likely cause is a lack of memory. Lower data.workers, found 1" in text
    assert len(caplog.records) == 2


def test_death_between_batches_does_not_disturb_whoever_works_then(tmp_path: Path) -> None:
    """torch would raise here in the midst of a training step."""
    expected = list(deadly(tmp_path / "never", workers=0).train_batches(0, 0))
    flag = tmp_path / "died"
    flag.touch()
    before = signal.getsignal(signal.SIGCHLD)
    others = set(torch.multiprocessing.active_children())
    batches = deadly(flag, workers=1).train_batches(0, 0)
    found = [next(batches)]
    assert signal.getsignal(signal.SIGCHLD) is before
    (worker,) = set(torch.multiprocessing.active_children()) - others
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:  # a step
        torch.ones(10).sum()
    found += batches
    assert same(found, expected)
