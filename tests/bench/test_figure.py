from __future__ import annotations

from pathlib import Path

from prunegate.bench import draw_bench
from prunegate.bench.figure import bench_figure
from prunegate.measuring import Timing
from tests.bench.made import made_bench, timing


def test_a_panel_per_batch_size_with_a_dot_per_row(tmp_path: Path) -> None:
    times: dict[tuple[str, int], Timing | str] = {
        ("dense", 1): timing(10),
        ("small", 1): timing(4, 2.0),
        ("dense", 16): timing(90),
        ("small", 16): "no",
    }
    figure = bench_figure(made_bench(times))
    one, sixteen = figure.axes
    assert (one.get_title(loc="left"), sixteen.get_title(loc="left")) == ("batch 1", "batch 16")
    dense, small = (container[0] for container in one.containers)
    assert (dense.get_xdata()[0], small.get_xdata()[0]) == (10, 4)
    assert dense.get_marker() != small.get_marker()
    assert small.get_markerfacecolor() == "none"  # noisy
    assert dense.get_markerfacecolor() != "none"
    assert "  not run" in [text.get_text() for text in sixteen.texts]
    draw_bench(tmp_path / "bench.png", made_bench(times))
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
