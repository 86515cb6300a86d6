"""Sums of surfaces: exact at whole blocks and between, differentiable, cheap where operations repeat."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prunegate.costs.latency_cost import LatencyCost, Profile, Surface, TimedCell

SURFACE = Surface(
    widths=((1, 16, 32), (1, 8, 16)),
    milliseconds=((1.0, 1.5, 2.0), (1.0, 2.0, 3.0), (2.0, 4.0, 6.0)),
    profiles=(Profile(16, tuple([0.0] + [1.0] * 15)), None),
)
INPUT, OUTPUT = np.arange(32), np.arange(32, 48)


def cost(*cells: TimedCell, **options: float) -> LatencyCost:
    return LatencyCost(cells or (TimedCell(SURFACE, (INPUT, OUTPUT)),), 48, **options)


def keep(inputs: int, outputs: int) -> np.ndarray:
    mask = np.zeros(48, dtype=bool)
    mask[:inputs] = True
    mask[32 : 32 + outputs] = True
    return mask


@pytest.mark.parametrize(
    ("inputs", "outputs", "milliseconds"),
    [
        (32, 16, 6.0),  # points of the grid
        (16, 8, 2.0),
        (1, 1, 1.0),
        (32, 12, 5.0),  # linear between them
        (17, 16, 6.0),  # a new block begins: all of it is computed
        (31, 8, 4.0),
        (16, 16, 3.0),
        (8, 8, 1.5 + 0.5 * 7 / 15),  # below the first whole block
    ],
)
def test_exact_cost(inputs: int, outputs: int, milliseconds: float) -> None:
    assert cost().exact(keep(inputs, outputs)) == pytest.approx(milliseconds)


def test_scale_and_constant_of_calibration() -> None:
    calibrated = cost().calibrated(2.0, 0.5)
    assert calibrated.exact(keep(16, 8)) == pytest.approx(4.5)
    assert calibrated.sum_of_surfaces(keep(16, 8)) == pytest.approx(2.0)
    assert calibrated.dense() == pytest.approx(12.5)
    assert float(calibrated.expected(torch.ones(48))) == pytest.approx(12.5)


def test_expected_cost_is_the_interpolated_one_and_its_gradient_the_slope_over_the_step() -> None:
    probability = torch.from_numpy(np.concatenate([np.full(32, 0.75), np.ones(16)])).requires_grad_()
    expected = cost().expected(probability)  # 24 of 32 inputs
    assert expected.item() == pytest.approx(4.5)
    expected.backward()
    assert probability.grad[:32] == pytest.approx(3.0 / 16)  # 3 ms over a block of 16
    assert probability.grad[32:] == pytest.approx(0.5 * (1.0 + 2.0) / 8)


def test_equal_cells_are_evaluated_once_and_counted_each() -> None:
    one = TimedCell(SURFACE, (INPUT, OUTPUT))
    other = TimedCell(SURFACE, (INPUT, np.concatenate([OUTPUT[:8], np.full(8, -1)])))
    three = cost(one, other, one)
    assert three.exact(keep(32, 8)) == pytest.approx(4.0 + 6.0 * 16 / 16 + 4.0)
    assert three.by_nest(keep(32, 8)).tolist() == pytest.approx([4.0, 6.0, 4.0])
    assert len(three._counts) == 2


def test_cells_with_one_width_stand_beside_cells_with_two() -> None:
    line = Surface(((1, 16),), ((0.5,), (2.0,)), (None,))
    both = cost(TimedCell(line, (OUTPUT,)), TimedCell(SURFACE, (INPUT, OUTPUT)))
    assert both.exact(keep(32, 16)) == pytest.approx(8.0)
    assert both.by_nest(keep(16, 8))[0] == pytest.approx(0.5 + 1.5 * 7 / 15)


def test_no_cells_cost_the_constant() -> None:
    assert LatencyCost([], 3, 1.0, 0.25).exact(np.ones(3, dtype=bool)) == pytest.approx(0.25)
