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
    files = [link for link in links if not link.startswith("#")]
    assert len(files) > 10
    for link in files:
        assert (ROOT / link).exists(), link
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    anchors = {"#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(links) - set(files) <= anchors


def section(title: str) -> str:
    text = (ROOT / "README.md").read_text()
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_first_screen_says_for_whom_what_it_is_better_at_and_how_to_install_it() -> None:
    first = (ROOT / "README.md").read_text().partition("\n## ")[0]
    assert len(first.splitlines()) <= 40
    for part in ("For people who have a PyTorch model", "Torch-Pruning", "pip install"):
        assert part in first
    project = (ROOT / "pyproject.toml").read_text()
    for name, least in (("Python", r'requires-python = ">=([\d.]+)"'), ("torch", r'"torch>=([\d.]+)"')):
        assert f"{name} {re.search(least, project)[1]} or newer" in first  # type: ignore[index]


def test_figures_of_the_first_screen_are_those_of_the_results() -> None:
    """The comparison with Torch-Pruning agrees with the tables below, and these agree with the tools' results."""
    text = (ROOT / "README.md").read_text()
    first, results = text.partition("\n## ")[0], section("Measured results")
    measured = (ROOT / "tools" / "zoo" / "RESULTS.md").read_text()
    for models, peer in ((109, 78), (98, 36)):
        assert f"{models} models, {models} ok" in measured
        assert f"Torch-Pruning: {models} models, {peer} ok" in measured
        assert re.search(rf"\| {models}\b[^\n]* \| {peer}\b", first)
        assert re.search(rf"\| {models} \| {models} \|[^\n]*\| {peer} \|", results)
    for row, ours, others in (("small ViT, a tenth", "97.4", "96.8"), ("MobileNetV2-like, a tenth", "86.7", "86.1")):
        (line,) = [line for line in results.splitlines() if line.startswith(f"| {row} ")]
        assert ours in line
        assert others in line
        assert f"| {ours}% | {others}%" in first


def test_sections_come_in_the_order_in_which_they_are_needed() -> None:
    titles = re.findall(r"^## (.+)$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert titles == [
        "Two commands",
        "I have a trained model",
        "In your own loop",
        "Recipes",
        "What is supported and what is refused",
        "Measured results",
        "Compaction, saving, loading",
        "Details",
        "How it works",
        "Development",
        "Changelog",
        "References",
    ]
    loop = section("In your own loop")
    assert loop.index("GateSteps(") < loop.index("TauSchedule(")
