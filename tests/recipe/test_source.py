"""Recipe text: places of keys, overrides' values, and broken YAML."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunegate.errors import RecipeError
from prunegate.recipe.source import parse_value, read_source


def written(folder: Path, text: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_key_has_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, "a: 1\nb:\n  c: {d: 2,\n      e: 3}\n  f:\n  - 4\n  - g: 5\n")
    source = read_source(path)
    lines = {key: int(place.rpartition(":")[2]) for key, place in source.places.items()}
    assert lines == {
        (): 1,
        ("a",): 1,
        ("b",): 2,
        ("b", "c"): 3,
        ("b", "c", "d"): 3,
        ("b", "c", "e"): 4,
        ("b", "f"): 5,
        ("b", "f", 0): 6,
        ("b", "f", 1): 7,
        ("b", "f", 1, "g"): 7,
    }
    assert source.data == {"a": 1, "b": {"c": {"d": 2, "e": 3}, "f": [4, {"g": 5}]}}
    assert source.place(("b", "c", "missing")) == f"{path}:3"


def test_key_given_twice_is_a_mistake_at_the_second_place(tmp_path: Path) -> None:
    path = written(tmp_path, "a: {b: 1}\nc: 2\na: {b: 3}\n")
    assert read_source(path).mistakes == [f"{path}:3: a: found twice, expected once. Remove one."]


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: 1\nb: [\n", 3), ("a: 1\n\tb: 2\n", 2), ("? [1]\n: 2\n", 1), ("a: !!python/name:os.system\n", 1)],
)
def test_broken_yaml_is_reported_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    path = written(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        read_source(path)
    assert str(caught.value).startswith(f"{path}:{line}: is not valid YAML: ")


@pytest.mark.parametrize("text", ["a: 2020-99-99\n", "a: " + "[" * 5000])
def test_yaml_that_breaks_the_parser_is_reported(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError, match="is not valid YAML"):
        read_source(written(tmp_path, text))


def test_endless_aliases_end(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    path = written(tmp_path, bomb + "self: &s {s: *s}\n")
    # Pytest would print the document, which is 2^40 long, if an assertion mentioned the source itself.
    place = read_source(path).place
    found = [place(("a39",)), place(("a39", 1, 0, 1)), place(("self", "s", "s"))]
    assert found == [f"{path}:40", f"{path}:39", f"{path}:41"]


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_unreadable_file_is_reported(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "r.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"cannot be read: .* Pass the path of a recipe"):
        read_source(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-2E+5", -2e5),
        ("1.5e3", 1500.0),
        ("0.5", 0.5),
        ("7", 7),
        ("e3", "e3"),
        ("1e", "1e"),
        ("true", True),
        ("null", None),
        ("[a, 1]", ["a", 1]),
        ("", None),
    ],
)
def test_values_are_read_as_yaml_reads_them(text: str, value: object) -> None:
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


def test_value_that_is_no_yaml_raises() -> None:
    with pytest.raises(ValueError, match="expected the node content"):
        parse_value("[")
