"""The tables, for times of our choice and terminals of several widths."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from prunegate.bench import Bench, advise, bench_tables
from prunegate.measuring import Timing
from tests.bench.made import made_bench, timing


def shown(bench: Bench, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    for part in bench_tables(bench, advise(bench)):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def bench() -> Bench:
    times: dict[tuple[str, int], Timing | str] = {
        ("dense", 1): timing(12.5, 0.25),
        ("small", 1): timing(5, 1.1),
        ("dense", 16): timing(1600, 20),
        ("small", 16): timing(810),
    }
    compiled = {**times, ("small", 1): "there is no compiler", ("small", 16): "there is no compiler"}
    return made_bench(times, runtimes={"compiled": compiled})


def test_rows_hold_time_spread_throughput_and_gain(bench: Bench) -> None:
    lines = [line.split() for line in shown(bench).splitlines()]
    assert ["dense", "12.5", "(0.2)", "80.0"] in lines
    assert ["small", "~5.00", "(1.10)", "200", "2.50"] in lines
    assert ["dense", "1,600", "(20)", "10.0"] in lines
    assert ["small", "810", "(0)", "19.8", "1.98"] in lines
    assert ["dense", "1.81", "M", "2.0", "1.5", "1.5"] in lines


def test_noise_is_explained_only_where_it_is_marked(bench: Bench) -> None:
    assert "~ noisy: the interquartile range is more than 20% of the median." in shown(bench)
    assert "noisy" not in shown(made_bench({("dense", 1): timing(10, 2.0)}))


def test_equal_reasons_are_told_once(bench: Bench) -> None:
    text = shown(bench)
    assert text.count("not run (1)") == 2
    assert text.count("(1) there is no compiler") == 1


def test_what_is_the_same_in_all_rows_is_told_once(bench: Bench) -> None:
    head, *rest = shown(bench, 200).splitlines()
    assert head == "A processor; inputs 3×32×32; 1 thread, float32, contiguous"
    assert not any("float32" in line for line in rest)
    assert sum(line.strip() == "compiled" for line in rest) == 2


@pytest.mark.parametrize("width", [60, 80])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(bench: Bench, width: int) -> None:
    text = shown(bench, width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text
    assert "1,600 (20)" in text


def test_a_setting_in_which_nothing_runs_takes_one_line() -> None:
    times: dict[tuple[str, int], Timing | str] = {("dense", 1): timing(10), ("small", 1): timing(4)}
    bench = made_bench(times, runtimes={"fused": dict.fromkeys(times, "nothing to fuse")})
    lines = [line.split() for line in shown(bench).splitlines()]
    assert ["fused", "not", "run", "(1)"] in lines
    assert ["(1)", "nothing", "to", "fuse"] in lines
