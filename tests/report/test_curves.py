from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from prunegate.report import KeptLayer, draw_report
from prunegate.report.curves import report_figure


def records(dense: int = 5, gate: int = 4, finetune: int = 3) -> list[dict[str, Any]]:
    """Lines as a run writes them."""
    found: list[dict[str, Any]] = []
    for stage, epochs in (("dense", dense), ("gate", gate), ("finetune", finetune)):
        for epoch in range(1, epochs + 1):
            gating = {"tau": 2.0 / epoch, "expected_macs": 900.0 / epoch, "realised_macs": 1000, "target_macs": 800.0}
            nothing: dict[str, Any] = dict.fromkeys(gating)
            found.append(
                {"stage": stage, "epoch": epoch, "loss": 1.0 / epoch, "accuracy": 0.9, "multiplier": 0.5}
                | (gating if stage == "gate" else nothing)
            )
    return found


def layers(count: int) -> list[KeptLayer]:
    return [KeptLayer(f"layer{i}.conv", 8 + i % 8, 16) for i in range(count)]


def test_report_is_a_picture_with_something_in_it(tmp_path: Path) -> None:
    path = tmp_path / "report.png"
    draw_report(path, "a run", records(), layers(6), dense_macs=1000)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = imread(path)[..., :3]
    height, width, _ = pixels.shape
    assert height >= 600
    assert width >= 800
    # Each quarter of the page holds ink, in more than a handful of colours.
    for rows in (slice(0, height // 2), slice(height // 2, height)):
        for columns in (slice(0, width // 2), slice(width // 2, width)):
            quarter = pixels[rows, columns]
            assert (quarter.mean(axis=2) < 0.9).mean() > 0.01
            assert len({tuple(p) for p in (quarter.reshape(-1, 3)[::7] * 255).astype(int)}) > 20
    assert [p.name for p in tmp_path.iterdir()] == ["report.png"], "a temporary file was left behind"


def test_curves_and_bars_depend_on_what_is_drawn(tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{i}.png" for i in range(3))
    draw_report(first, "a run", records(), layers(6), 1000)
    draw_report(second, "a run", records(), [KeptLayer(layer.name, 1, 16) for layer in layers(6)], 1000)
    draw_report(third, "a run", [r | {"accuracy": 0.5 + r["epoch"] / 20} for r in records()], layers(6), 1000)
    assert (imread(first) != imread(second)).any()
    assert (imread(first) != imread(third)).any()


@pytest.mark.parametrize(
    ("lines", "groups"),
    [(records(0, 1, 0), 1), (records(3, 0, 0), 2), (records(1, 2, 1), 120)],
    ids=["one-epoch", "no-gate-stage", "many-groups"],
)
def test_unusual_runs_are_drawn_too(tmp_path: Path, lines: list[dict[str, Any]], groups: int) -> None:
    path = tmp_path / "report.png"
    draw_report(path, "a run", lines, layers(groups), 1000)
    pixels = imread(path)
    assert pixels.shape[0] > (2000 if groups == 120 else 500)


def test_names_may_hold_any_characters(tmp_path: Path) -> None:
    # matplotlib reads dollar signs as mathematics.
    path = tmp_path / "report.png"
    draw_report(path, "costs_^2 run: 50% of the MACs", records(), [KeptLayer("blocks.0.attn_qkv", 3, 4)], 1000)
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize("loss", ["cross entropy", "my_code:my_loss, with distillation", "costs $x^2$"])
def test_the_curve_says_which_loss_it_is_of(loss: str) -> None:
    figure = report_figure("a run", records(), layers(2), 1000, loss)
    assert figure.axes[0].get_title() == f"training loss ({loss})".replace("$", r"\$")


def test_nothing_is_claimed_of_a_loss_without_a_name() -> None:
    figure = report_figure("a run", records(), layers(2), 1000)
    assert figure.axes[0].get_title() == "training loss"
