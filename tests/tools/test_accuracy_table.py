"""The benchmark's tables: on which seeds methods are compared, and what is called the best."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PATH = Path(__file__).parents[2] / "tools" / "bench" / "accuracy" / "table.py"


@pytest.fixture(scope="module")
def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("accuracy_table", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def rows(method: str, accuracies: dict[int, float], distilled: bool = False, task: str = "t") -> list[dict[str, Any]]:
    return [
        {
            "task": task, "seed": seed, "method": method, "distilled": distilled, "budget": 0.5, "phase": phase,
            "dense_accuracy": 0.9, "dense_macs": 1000, "macs": 499, "accuracy": accuracy - (phase == "hardened") / 10,
            "train_macs": 1e12,
        }
        for seed, accuracy in accuracies.items()
        for phase in ("hardened", "finetuned")
    ]  # fmt: skip


def claim(made: str) -> list[str]:
    """The cells of the first line of the first table."""
    (line, *_) = [text for text in made.splitlines() if text.startswith("| t |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_lead_is_over_the_best_criterion_on_the_seeds_that_both_have(table: ModuleType) -> None:
    made = table.tables(
        rows("prunegate", {0: 0.80, 1: 0.90, 2: 0.10}) + rows("a", {0: 0.80, 1: 0.80}) + rows("b", {0: 0.70, 1: 0.86})
    )
    cells = claim(made)
    assert cells[2] == "2"
    assert cells[4] == "75.00 ± 5.00"
    assert cells[5] == "85.00 ± 5.00"
    assert cells[6] == "80.00 ± 0.00"
    assert cells[7] == "a of 2"
    assert cells[8] == "+5.00 ± 5.00"


def test_criterion_that_has_hardly_begun_does_not_shrink_the_comparison(table: ModuleType) -> None:
    full = dict.fromkeys(range(4), 0.8)
    cells = claim(table.tables(rows("prunegate", full) + rows("a", full) + rows("b", {0: 0.99})))
    assert cells[2] == "4"
    assert cells[7] == "a of 1"


def test_distilled_rows_have_tables_of_their_own(table: ModuleType) -> None:
    plain = rows("prunegate", {0: 0.8}) + rows("a", {0: 0.7})
    made = table.tables(plain + rows("prunegate", {0: 0.9}, True) + rows("a", {0: 0.6}, True))
    before, after = made.split("## With distillation")
    assert claim(before)[8] == "+10.00"
    assert claim(after)[8] == "+30.00"
    assert "With distillation" not in table.tables(plain)


def test_lead_over_each_criterion_weighs_tasks_alike_on_the_seeds_that_both_have(table: ModuleType) -> None:
    made = table.tables(
        rows("prunegate", {0: 0.8, 1: 0.8, 2: 0.1})
        + rows("prunegate", dict.fromkeys(range(8), 0.7), task="u")
        + rows("a", {0: 0.7, 1: 0.6})
        + rows("a", dict.fromkeys(range(8), 0.8), task="u")
        + rows("b", {1: 0.9})
    )
    # Leads of 10 and 20 points in one task, of -10 in each of eight seeds of the other.
    assert "| a | 2 | +2.50 ± 2.50 |" in made
    assert "| b | 1 | -10.00 |" in made  # a single seed has no error
    assert "| prunegate | 2 |" not in made


def test_lead_over_each_criterion_leaves_out_what_nobody_has_run(table: ModuleType) -> None:
    tighter = [{**row, "budget": 0.1} for row in rows("prunegate", {0: 0.8}) + rows("b", {0: 0.5})]
    made = table.tables(rows("prunegate", {0: 0.8}) + rows("a", {0: 0.7}) + tighter)
    assert "| lead over | tasks | at 0.5 | at 0.1 |" in made
    assert "| a | 1 | +10.00 |  |" in made
    assert "| b | 1 |  | +30.00 |" in made
