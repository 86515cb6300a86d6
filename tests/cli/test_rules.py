"""`prunegate inspect --rules`: the list of operations is the one that the tracer uses."""

from __future__ import annotations

import json

import pytest

from prunegate.cli import main
from prunegate.groups.rules import BUILTIN_RULES, FUNCTION_RULES
from prunegate.groups.rules.listing import rule_families


def test_every_rule_is_listed_once_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--rules", "--json"]) == 0
    families = {family["name"]: family for family in json.loads(capsys.readouterr().out)}
    listed = [name for family in families.values() for name in family["operations"]]
    assert sorted(listed) == sorted([*BUILTIN_RULES, *FUNCTION_RULES, "RNNBase"])
    assert all(family["what"].endswith(".") for family in families.values())
    assert "mm" in families["contraction"]["operations"]
    assert "permute" in families["movement"]["operations"]
    assert families["recurrent"]["operations"] == ["RNNBase"]


def test_the_table_fits_a_narrow_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["inspect", "--rules"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines[: lines.index(next(x for x in lines if x.startswith("└")))]) <= 60
    assert len(rule_families()) >= 11


def test_neither_a_model_nor_rules_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect"]) == 2
    assert "no model was given, expected one, such as timm/resnet18" in capsys.readouterr().err
