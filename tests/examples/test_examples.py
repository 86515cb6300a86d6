"""The examples in tools/examples run as they stand, meet their budget without loss, and learn."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunegate

FOLDER = Path(__file__).parents[2] / "tools" / "examples"
MARK = "# prunegate"

pytestmark = [
    # Lightning 2.6 asks torch's pytree in a way that torch has deprecated.
    pytest.mark.filterwarnings(r"ignore:.*isinstance\(treespec, LeafSpec\).*:FutureWarning"),
    # Lightning advises several worker processes; data in memory needs none.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


@pytest.fixture
def compactions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[prunegate.GatedModel, prunegate.Compaction]]:
    """All that an example compacts: the gated models and what came of them."""
    made = []
    compact = prunegate.compact

    def noted(gated: prunegate.GatedModel) -> prunegate.Compaction:
        made.append((gated, compact(gated)))
        return made[-1][1]

    monkeypatch.setattr(prunegate, "compact", noted, raising=False)
    return made


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("plain_loop", "timm"),
        ("lightning_callback", "lightning"),
        ("transformers_trainer", "transformers"),
    ],
)
def test_example_ends_with_a_compact_model_that_meets_the_budget(
    name: str, package: str, tmp_path: Path, compactions: list[Any]
) -> None:
    pytest.importorskip(package)
    model, accuracy = runpy.run_path(str(FOLDER / f"{name}.py"))["main"](tmp_path)
    assert accuracy > 0.7  # ten classes
    ((gated, result),) = compactions
    inputs = gated.example_inputs.map(lambda tensor: torch.randn(5, *tensor.shape[1:]))
    recount = prunegate.wrap(model, gated.example_inputs.kwargs or gated.example_inputs.args)
    assert 0.49 <= recount.dense_cost("macs") / gated.dense_cost("macs") <= 0.5
    assert result.certificate.float64.max_rel <= 1e-9
    gated.eval()
    with torch.no_grad():
        found, expected = model(*inputs.args, **inputs.kwargs), gated(*inputs.args, **inputs.kwargs)
    torch.testing.assert_close(getattr(found, "logits", found), getattr(expected, "logits", expected))
    assert (tmp_path / "compact.safetensors").exists()


def test_plain_loop_has_at_most_ten_added_lines_and_is_an_ordinary_loop_without_them(tmp_path: Path) -> None:
    lines = (FOLDER / "plain_loop.py").read_text().splitlines()
    added = [line for line in lines if line.endswith(MARK)]
    assert 0 < len(added) <= 10
    assert all(line.count(";") == 0 for line in added)
    plain = [line for line in lines if not line.endswith(MARK)]
    start = plain.index("from __future__ import annotations")  # after the docstring, which tells of prunegate
    assert not any("prunegate" in line or "gate" in line for line in plain[start:])
    file = tmp_path / "plain.py"
    file.write_text("\n".join(plain))
    model, accuracy = runpy.run_path(str(file))["main"](tmp_path)
    assert isinstance(model, nn.Module)
    assert not isinstance(model, prunegate.GatedModel)
    assert accuracy > 0.9
