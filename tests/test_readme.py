"""The README's example runs as it is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from prunegate.builders import Builder

ROOT = Path(__file__).resolve().parent.parent


def example() -> str:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 1
    return str(blocks[0])


def test_example_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(compile(example(), "README.md", "exec"), names)
    gated, model = names["gated"], names["model"]
    assert 0.495 <= gated.realised_cost("macs") / gated.dense_cost("macs") <= 0.5
    assert type(model) is type(Builder.parse("timm/test_resnet").build())
    with torch.no_grad():
        accuracy = (model(names["images"]).argmax(1) == names["labels"]).float().mean()
        assert torch.equal(model(names["images"][:8]), names["result"].model.eval()(names["images"][:8]))
    assert accuracy > 0.5  # ten classes; two minutes of training would give far more


def test_files_that_the_readme_links_to_exist() -> None:
    text = (ROOT / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert len(links) > 10
    for link in links:
        assert (ROOT / link).exists(), link
