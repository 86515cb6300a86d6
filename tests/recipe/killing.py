"""A run that is left alone, and one that is killed again and again, and resumed each time.

    python -m tests.recipe.killing RECIPE UNDISTURBED KILLED KILLS PROCESSES SEED

Each attempt is a fork of this process, which has imported everything. The killed one gets its SIGKILL a few
milliseconds after it has come to a random step, or a random time after its start, where nothing is trained. Several
processes train together over gloo. Prints the stages it was killed in as a JSON list.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import prunegate
from prunegate.data import load_data
from prunegate.recipe import Recipe, load_recipe, run
from tests.conftest import SmallNet
from tests.recipe.short import timed_briefly, undrawn


class Teller:
    """A listener that tells the parent, through a pipe, how far the run is."""

    def __init__(self, pipe: int) -> None:
        self.pipe, self.stage, self.steps = pipe, "start", 0

    def run_started(self, start: Any) -> None: ...

    def stage_started(self, stage: str, epochs: int) -> None:
        self.stage = stage

    def step_ended(self, epochs_done: float, loss: float | None, samples: int) -> None:
        self.steps += 1
        os.write(self.pipe, f"{self.stage}\n".encode())

    def epoch_ended(self, record: Mapping[str, Any], dense_macs: int) -> None: ...

    def note(self, text: str) -> None:
        os.write(self.pipe, f"{text.split()[0]}\n".encode())

    def finished(self, comparison: Any, certificate: Mapping[str, Any], folder: str) -> None: ...


def attempt(recipe: Recipe, folder: Path, processes: int, lines: int | None, pause: float) -> str | None:
    """Run, or go on, until the child has told so many lines (None: to the end) and some seconds more.

    Returns:
        The first word of the last line, if it was killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reading, writing = os.pipe()
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            os.close(reading)
            _child(recipe, folder, writing, rank, processes, port)
        children.append(child)
    os.close(writing)
    last = "start"
    with os.fdopen(reading) as told:
        for line in itertools.islice(told, lines):
            last = line.strip()
        if lines is not None:
            time.sleep(pause)
            for child in children:
                os.kill(child, signal.SIGKILL)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    if lines is None and any(statuses):
        raise RuntimeError(f"the run failed: {statuses}")
    return last if all(os.WIFSIGNALED(status) for status in statuses) else None


def _child(recipe: Recipe, folder: Path, pipe: int, rank: int, processes: int, port: int) -> None:
    if processes > 1:
        several = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in several.items()}, MASTER_ADDR="127.0.0.1")
    # A fork has no threads, so torch makes its pool anew: here, as two threads that do so at once fail.
    torch.set_num_threads(1)
    try:
        with timed_briefly(), undrawn():
            run(recipe, folder, Teller(pipe), resume=True)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def import_everything(recipe: Recipe) -> None:
    """Also what a run imports on its way: scikit-learn for its data, torch's compiler for its dry runs."""
    load_data(recipe.data)
    prunegate.wrap(SmallNet(), torch.zeros(2, 3, 7, 7))
    gc.collect()
    gc.freeze()


def main(recipe: str, undisturbed: str, folder: str, kills: int, processes: int, seed: int) -> None:
    torch.set_num_threads(1)
    loaded, choice, stages = load_recipe(recipe), random.Random(seed), []
    import_everything(loaded)
    attempt(loaded, Path(undisturbed), processes, None, 0.0)
    while len(stages) < kills:
        # A few lines on from wherever it is, so that the run is come through in about so many attempts; or before it
        # has told anything, while it sets out.
        early = len(stages) % 5 == 4
        # A step of one process takes few milliseconds on an idle machine, so more would come to the end too early;
        # several processes lose more of what they did.
        most, longest = (7, 0.008) if processes == 1 else (9, 0.05)
        lines, pause = (
            (0, choice.uniform(0.0, 0.7)) if early else (choice.randrange(3, most), choice.uniform(0.0, longest))
        )
        stage = attempt(loaded, Path(folder), processes, lines, pause)
        if stage is None:
            raise RuntimeError(f"the run ended after {len(stages)} kills, expected to be killed {kills} times")
        stages.append(stage)
    attempt(loaded, Path(folder), processes, None, 0.0)
    sys.stdout.write(json.dumps(stages) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
