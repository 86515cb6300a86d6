"""Several processes that train one model, started as users start them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunegate.training import Processes, random_states, set_random_states
from tests.training import together

TORCHRUN = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes told, that were started once for all tests: each imports everything for itself."""
    out = tmp_path_factory.mktemp("two")
    command = [*TORCHRUN, "-m", "tests.training.together", str(out), "sigmoid", "gumbel", "diverging"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, timeout=300, env=environment, stderr=subprocess.DEVNULL)
    return out


def trained(out: Path, estimator: str, count: int = 2) -> list[dict[str, Any]]:
    """What every one of so many processes told, that trained with an estimator."""
    return [torch.load(out / f"{estimator}-rank{rank}.pt") for rank in range(count)]


def test_two_processes_with_half_of_each_batch_match_one_process(told: Path, tmp_path: Path) -> None:
    together.main(tmp_path, "sigmoid")
    (one,) = trained(tmp_path, "sigmoid", count=1)
    two, other = trained(told, "sigmoid")
    for name, expected in one["parameters"].items():
        found = two["parameters"][name]
        assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max())), name
        assert torch.equal(found, other["parameters"][name]), name
    assert np.allclose(one["figures"], two["figures"], rtol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(one["masks"], two["masks"], strict=True))
    assert not all(bool(mask.all()) for mask in one["masks"]), "nothing was pruned, so nothing was compared"


def test_masks_agree_across_processes_that_draw_noise_of_their_own(told: Path) -> None:
    one, other = trained(told, "gumbel")
    assert len(one["masks"]) == 4
    assert all(torch.equal(a, b) for a, b in zip(one["masks"], other["masks"], strict=True))
    assert not all(bool(mask.all()) for mask in one["masks"])
    assert one["figures"] == other["figures"]


def test_all_processes_stop_at_the_step_where_one_meets_a_loss_that_is_no_number(told: Path) -> None:
    one, other = (torch.load(told / f"rank{rank}.pt") for rank in range(2))
    assert one == other
    assert one["error"].startswith("dense, epoch 2, step 6: the loss is nan, expected a finite number.")
    assert "The batch holds the training samples 60, 61. " in one["error"]
    assert len(one["losses"]) == 1


@pytest.mark.parametrize("source", [torch.rand, np.random.rand, lambda n: random.random()])
def test_random_states_are_put_back(source: Any) -> None:
    states = random_states()
    first = source(1)
    set_random_states(states)
    assert source(1) == first


def test_first_process_speaks_for_all() -> None:
    processes = Processes()
    assert (processes.rank, processes.count, processes.is_first) == (0, 1, True)
    assert processes.gathered(1.5, 2) == [[1.5], [2]]
    assert processes.by_first(lambda: 3, ValueError) == 3
    with pytest.raises(ValueError, match="no"):
        processes.by_first(lambda: int("no"), ValueError)
