"""Which operations are timed, over which widths, and whether they run at fewer channels."""

from __future__ import annotations

import time

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from prunegate.groups import ExampleInputs, Trace
from prunegate.latency.cell_times import CellTimes
from prunegate.latency.cells import cells_of
from prunegate.latency.narrowing import Narrowed


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.one, self.two = nn.Conv2d(32, 48, 1), nn.Conv2d(32, 48, 1)
        self.head = nn.Linear(48, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.depthwise(self.first(x)))
        return self.head((self.one(x) + self.two(x)).mean((2, 3)))


def traced(model: nn.Module, x: torch.Tensor) -> tuple[Trace, list]:
    trace = Trace(model.eval(), ExampleInputs.of(x))
    return trace, cells_of(trace.tape, trace.analysis())


def name_of(trace: Trace, cell: object) -> str:
    return trace.tape.operations[cell.operation].func._schema.name.removeprefix("aten::")


def test_contractions_have_an_input_and_an_output_width_and_all_others_one() -> None:
    trace, cells = traced(Net(), torch.randn(1, 3, 8, 8))
    sizes = [(name_of(trace, cell), sorted(factor.size for factor in cell.factors)) for cell in cells]
    assert sizes == [
        ("convolution", [32]),
        ("convolution", [32]),  # depthwise: the same channels
        ("relu", [32]),
        ("convolution", [32, 48]),
        ("convolution", [32, 48]),
        ("add", [48]),
        ("mean", [48]),
        ("addmm", [48]),
    ]


def test_equal_operations_have_one_signature() -> None:
    _, cells = traced(Net(), torch.randn(1, 3, 8, 8))
    signatures = [cell.signature for cell in cells]
    assert signatures[3] == signatures[4]
    assert len(set(signatures)) == len(signatures) - 1
    _, larger = traced(Net(), torch.randn(1, 3, 16, 16))
    assert {cell.signature for cell in larger}.isdisjoint(signatures[:6])
    _, again = traced(Net(), torch.randn(1, 3, 8, 8))
    assert [cell.signature for cell in again] == signatures


def test_attention_is_one_call_with_torchs_own_kernel() -> None:
    _, cells = traced(timm.create_model("test_vit"), torch.randn(1, 3, 160, 160))
    calls = [cell for cell in cells if not isinstance(cell.operation, int)]
    assert calls
    assert all(cell.operation.target is F.scaled_dot_product_attention for cell in calls)
    within = {i for cell in calls for i in range(cell.operation.first, cell.operation.last)}
    assert within.isdisjoint(cell.operation for cell in cells if isinstance(cell.operation, int))


def test_widths_are_narrowed_in_all_groups_alike() -> None:
    _, cells = traced(torchvision.models.densenet121(), torch.randn(1, 3, 64, 64))
    widest = max((factor for cell in cells for factor in cell.factors), key=lambda factor: factor.size)
    num_units = 1 + max(int(cell.factors[0].axis.max()) for cell in cells)
    mask, width = widest.narrowed(widest.size // 2, num_units)
    assert width == widest.size // 2
    kept = mask[widest.order]
    assert 0.4 < kept[: len(kept) // 2].mean() <= 1.0
    assert int(mask[widest.axis[widest.axis >= 0]].sum()) + int((widest.axis < 0).sum()) == width


MODELS = [
    "torchvision/resnet18", "torchvision/mobilenet_v3_small", "torchvision/shufflenet_v2_x0_5", "torchvision/swin_t",
    "torchvision/convnext_tiny", "timm/test_vit", "timm/levit_128s", "timm/coat_lite_tiny", "timm/resnest14d",
    "timm/xcit_nano_12_p16_224", "timm/mixer_s32_224",
]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_every_operation_runs_by_itself_on_fewer_channels(name: str) -> None:
    library, _, rest = name.partition("/")
    torch.manual_seed(0)
    model = timm.create_model(rest) if library == "timm" else torchvision.models.get_model(rest)
    size = model.default_cfg["input_size"][-1] if library == "timm" else 224
    trace = Trace(model.eval(), ExampleInputs.of(torch.randn(1, 3, size, size)))
    analysis = trace.analysis()
    cells = {cell.signature: cell for cell in cells_of(trace.tape, analysis)}
    times = CellTimes(trace.tape, analysis, torch.device("cpu"), torch.float32, 0, time.thread_time)
    for cell in cells.values():
        for share in (1.0, 0.5, 0.25):
            keep = np.ones(analysis.num_units, dtype=bool)
            for factor in cell.factors:
                keep &= factor.narrowed(int(factor.size * share), analysis.num_units)[0]
            sizes = Narrowed(trace.tape, analysis.units_of, keep)
            if any(0 in sizes.shape(root) for root in cell.roots):
                continue
            result = times._calls(cell, sizes)[0]()
            if isinstance(cell.operation, int) and isinstance(result, torch.Tensor):
                number = trace.tape.operations[cell.operation].results[0]
                assert tuple(result.shape) == sizes.shape(number)
