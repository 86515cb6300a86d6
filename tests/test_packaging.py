"""Consistency of the package: version and changelog, metadata, CI, top-level files."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import prunegate
from tools.release import absolute, with_urls

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_changelog_begins_with_this_version_or_what_comes_after_it() -> None:
    changelog = (ROOT / "README.md").read_text().partition("## Changelog\n")[2]
    headings = re.findall(r"^### (\S+)", changelog, re.MULTILINE)
    if headings[0] == "Unreleased":
        headings.pop(0)
    assert headings[0] == prunegate.__version__


def test_the_metadata_say_who_and_for_whom() -> None:
    assert PROJECT["authors"]
    assert {"pruning", "pytorch"} <= set(PROJECT["keywords"])
    classifiers = PROJECT["classifiers"]
    least = int(PROJECT["requires-python"].removeprefix(">=3."))
    assert f"Programming Language :: Python :: 3.{least}" in classifiers
    assert f"Programming Language :: Python :: 3.{least - 1}" not in classifiers
    assert "Typing :: Typed" in classifiers
    assert not any(name.startswith("License ::") for name in classifiers)  # the SPDX expression says it


def test_nothing_else_lies_at_the_top() -> None:
    allowed = {"prunegate", "recipes", "tests", "tools", "pyproject.toml", "README.md", "LICENSE"}
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs the repository")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {line.partition("/")[0] for line in listed.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= allowed


def test_the_workflow_runs_what_can_be_run_here() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yaml").read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    scripts = {command.split()[1] for command in commands if command.startswith("bash ")}
    assert scripts == {".ci/run", ".ci/lowest", ".ci/coverage"}
    for script in (*scripts, ".ci/packages"):
        assert subprocess.run(["bash", "-n", str(ROOT / script)], check=False).returncode == 0
    pythons = jobs["run"]["strategy"]["matrix"]["python"]
    assert min(int(version.partition(".")[2]) for version in pythons) == int(
        PROJECT["requires-python"].removeprefix(">=3.")
    )
    assert jobs["coverage"]["continue-on-error"] is True
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    run = (ROOT / ".ci" / "run").read_text()
    for hook in hooks:
        assert hook["entry"].removesuffix(" --force-exclude") in run


def test_links_are_made_absolute_for_pypi() -> None:
    text = (
        "![A run](tools/a.png) see [it](tools/zoo.md), [there](https://x.org/y), [![p](a.png)](b.md) and [here](#top)"
    )
    assert absolute(text, "https://h/o/p", "v1") == (
        "![A run](https://h/o/p/raw/v1/tools/a.png) see [it](https://h/o/p/blob/v1/tools/zoo.md), "
        "[there](https://x.org/y), [![p](https://h/o/p/raw/v1/a.png)](https://h/o/p/blob/v1/b.md) and [here](#top)"
    )
    whole = absolute((ROOT / "README.md").read_text(), "https://h/o/p", "v1")
    links = re.findall(r"\]\(([^)\s]+)\)", whole)
    assert links
    assert all("://" in link or link.startswith("#") for link in links)
    for link in links:
        if link.startswith("https://h/o/p/"):
            assert (ROOT / link.split("/v1/")[1]).exists(), link


def test_the_addresses_are_a_table_of_the_project() -> None:
    made = tomllib.loads(with_urls((ROOT / "pyproject.toml").read_text(), "https://h/o/p"))["project"]
    assert made["urls"]["Repository"] == "https://h/o/p"
    assert made["scripts"] == PROJECT["scripts"]
