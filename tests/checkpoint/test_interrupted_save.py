"""A save that is killed, or runs out of disk space, leaves either the old file or the new one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from prunegate.checkpoint import read_document
from prunegate.checkpoint.files import hash_compared, read_tensors
from tests.checkpoint.forks import Forks, forks
from tests.checkpoint.models import compacted

KILLS = 40

# Saves models 0, 1, 2, ... over one and the same file for ever, and tells who it is before it begins.
SAVER = """
import itertools, os, torch
from tests.checkpoint.forks import answer, serve
from tests.checkpoint.models import compacted
torch.set_num_threads(1)
result, _ = compacted("SmallNet", 16)
result._fingerprint = lambda: None  # the file is to be written often, not described well

def save_for_ever(file):
    answer(os.getpid())
    for number in itertools.count():
        torch.nn.init.constant_(next(result.model.parameters()), number)
        result.save(file, extra={"number": number})

serve(save_for_ever)
"""

LIMITED = """
import resource, signal
from prunegate.errors import CheckpointError
from tests.checkpoint.forks import answer, serve
from tests.checkpoint.models import compacted
result, _ = compacted("SmallNet", 16)

def save_in(room, file):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    try:
        result.save(file)
        answer("saved")
    except CheckpointError as error:
        answer(str(error))

serve(save_in)
"""


def read_whole(file: Path) -> tuple[int, dict[str, torch.Tensor]]:
    """The number that was saved with the model, and its tensors, whose hash is right."""
    document = read_document(file)
    with hash_compared(file, document):
        return document.extra["number"], read_tensors(file)


def stop(process: int) -> None:
    """The signal alone returns before the process has stopped, which may be in the midst of what is read then."""
    os.kill(process, signal.SIGSTOP)
    while psutil.Process(process).status() != psutil.STATUS_STOPPED:
        time.sleep(0.0001)


def test_killed_save_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    file = tmp_path / "c.safetensors"
    pause = random.Random(0)
    seen = set()
    result, _ = compacted("SmallNet", 16)
    first = next(name for name, _ in result.model.named_parameters())
    with forks(SAVER) as savers:
        for _ in range(KILLS // 10):
            savers.start(str(file))
            child = savers.next_answer()
            # A stopped process is where a killed one would be: looked at again and again, then killed.
            for _ in range(10):
                time.sleep(pause.uniform(0.001, 0.02))
                stop(child)
                if file.exists():
                    number, tensors = read_whole(file)
                    assert (tensors[first] == number).all()
                    seen.add(number)
                os.kill(child, signal.SIGCONT)
            os.kill(child, signal.SIGKILL)
            assert savers.next_answer() == -signal.SIGKILL
            read_whole(file)
    assert len(seen) > 5


@pytest.fixture(scope="module")
def limited() -> Iterator[Forks]:
    with forks(LIMITED) as made:
        yield made


@pytest.mark.parametrize("room", [0, 8, 1000, 10_000])
def test_full_disk_leaves_the_old_file(tmp_path: Path, limited: Forks, room: int) -> None:
    file = tmp_path / "c.safetensors"
    result, _ = compacted("SmallNet", 16)
    result.save(file, extra={"which": "old"})
    assert file.stat().st_size > room
    limited.start(room, str(file))
    told = limited.next_answer()
    assert "cannot be written" in told
    assert "too large" in told
    assert limited.next_answer() == 0
    assert read_document(file).extra == {"which": "old"}
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.skipif(sys.platform != "linux", reason="stands on ptrace")
def test_between_any_two_system_calls_the_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "tests.checkpoint.stepping", str(tmp_path / "c.safetensors")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    found = json.loads(done.stdout)
    assert found["status"] == 0
    assert found["numbers"] == [0, 1]  # from the old file to the new one, once, and never anything else
    assert found["stops"] > 50
    assert found["most_other_files"] <= 2  # ours, and the one that safetensors fills first
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]
