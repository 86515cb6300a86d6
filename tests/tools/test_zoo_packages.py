"""The zoo: which models of packages it has, what it says of one, and what its tables sum up."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

TOOLS = Path(__file__).parents[2] / "tools"


def part(name: str) -> Any:
    """A module of the zoo, which is run from its own folder."""
    if str(TOOLS) not in sys.path:
        sys.path.append(str(TOOLS))
    return importlib.import_module(f"zoo.{name}")


def test_names_are_of_more_packages_and_models_than_asked_for() -> None:
    names = part("packages").names()
    assert len(names) == len(set(names)) >= 120
    assert len({name.split("/")[0] for name in names}) >= 12


def row(status: str = "exact", **others: Any) -> dict[str, Any]:
    return {
        "model": f"packages/made/{status}", "status": status, "params": 1000, "dtype": "float64", "limits": [],
        "notes": {},
        "differences": {"traced": 1e-16, "batch": 1e-16}, "removed": 0.7, "wrap_s": 1.0, "same_class": True,
        "peer": {"status": "ok", "removed": 0.6}, **others,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("place", "counted"),
    [
        ("", True),
        ("[0]", True),
        ("['logits']", True),
        ("['pooler_output']", True),
        ("['pooler_output'][1]", True),
        ("['prediction_outputs']", True),
        (".last_hidden_state", False),
        ("['encoder_last_hidden_state'][2]", False),
        ("['vision_model_output']['pooler_output']", False),
        ("['image_outputs']['pooler_output'][0]", False),
        ("['intermediate_logits']", False),
        ("['past_key_values'][0]", False),
    ],
)
def test_what_a_model_kept_on_the_way_does_not_count_by_its_name(place: str, counted: bool) -> None:
    assert part("counting").counts(place) is counted


class _Returns(nn.Module):
    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: x + number for number, name in enumerate(self.names)}


def test_outputs_are_only_chosen_where_some_count_and_others_do_not() -> None:
    places = part("counting").places_that_count
    assert places(_Returns("logits", "hidden_states"), torch.ones(2)) == ["['logits']"]
    assert places(_Returns("logits", "boxes"), torch.ones(2)) is None
    assert places(_Returns("last_hidden_state"), torch.ones(2)) is None


@pytest.mark.parametrize(
    ("others", "status"),
    [
        ({}, "exact"),
        ({"differences": {"traced": 1e-3}}, "wrong"),
        ({"differences": {"traced": None}, "notes": {"traced": "outputs of another form"}}, "wrong"),
        ({"differences": {"batch": None}, "notes": {"batch": "refuses: LimitError"}}, "limited"),
        ({"limits": ["the model: only ['logits'] is preserved; other outputs may be narrower or different"]}, "exact"),
        ({"limits": ["the model: runs only on inputs of the sizes of then"]}, "limited"),
        ({"differences": {}}, "vacuous"),
        ({"differences": {"training": 1e-7}, "notes": {"training": "rounding alone changes it by 1e-7"}}, "exact"),
        ({"differences": {"training": 0.3}, "notes": {"training": "rounding alone changes it by 0.1"}}, "vacuous"),
    ],
)
def test_a_verdict_is_the_worst_that_was_seen(others: dict[str, Any], status: str) -> None:
    assert part("measure")._verdict(row(**others), 1e-9)[0] == status


def test_the_table_counts_and_averages(tmp_path: Path) -> None:
    refused = {"model": "packages/made/refused", "status": "refused", "message": "why", "peer": {"status": "crash"}}
    rows = [row(), row("limited", removed=0.5, peer={"status": "shapes", "removed": 0.9}), refused]
    (tmp_path / "results-packages.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    part("packages_table").write_packages(tmp_path, tmp_path / "PACKAGES.md")
    written = (tmp_path / "PACKAGES.md").read_text()
    assert "| exact: without a limit on size or batch | 1 (33.3%) |" in written
    assert "of the 2 that are cut | 0.600 |" in written
    assert "over all 3, those that are not cut as 0 | 0.400 |" in written
    assert "where both ran (1): prunegate, Torch-Pruning | 0.700, 0.600 |" in written
    assert written.splitlines()[-1].startswith("| made/refused |")


def test_the_table_has_the_share_with_every_output_preserved_as_well(tmp_path: Path) -> None:
    limit = "the model: only ['logits'] is preserved; other outputs may be narrower or different"
    rows = [row(), row(model="packages/made/chosen", removed=0.5, removed_all_outputs=0.1, limits=[limit])]
    (tmp_path / "results-packages.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    part("packages_table").write_packages(tmp_path, tmp_path / "PACKAGES.md")
    written = (tmp_path / "PACKAGES.md").read_text()
    assert "| models with outputs that do not count | 1 |" in written
    assert "of the 2 that are cut | 0.600 |" in written
    assert "| these two means with every output preserved | 0.400, 0.400 |" in written
    assert "(a mode that could not be followed) | 0 |" in written
    assert "| 0.500 | 0.100 | 0.600 |" in written


def test_the_table_of_coverage_counts_models_that_run_at_any_size(tmp_path: Path) -> None:
    old = {"model": "made/old", "status": "ok", "removed": 0.7, "wrap_s": 1.0, "worst": 0.0}
    free = old | {"model": "made/free", "revision": "abc", "limits": []}
    mode = free | {"model": "made/mode", "limits": ["the model: training mode could not be followed: why"]}
    held = free | {"model": "made/held", "limits": ["a.b: runs only on inputs of the sizes of then"]}
    refuses = free | {"model": "made/refuses", "status": "batch"}
    rows = [old, free, mode, held, refuses]
    (tmp_path / "results-made-auto.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    part("table").write_table(tmp_path, tmp_path / "RESULTS.md")
    written = (tmp_path / "RESULTS.md").read_text()
    assert "Limits were noted for 4 models: 2 are ok and not held to the size that was traced" in written
    assert "1 of these without any limit. Measured at abc (4)." in written
    assert "a.b: runs only on inputs of the sizes of then" in written
