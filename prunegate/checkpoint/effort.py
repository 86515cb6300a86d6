"""The cost of running a model, found without computing anything."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from prunegate.compaction import outputs_of
from prunegate.groups import ExampleInputs, FakeTensors
from prunegate.groups.torch_workarounds.fake_tensors import KINDS


@dataclass(frozen=True)
class Effort:
    """The cost of one run.

    Attributes:
        macs: Multiply-accumulates, for all samples.
        largest: Numbers in the largest tensor of the run.
        shapes: The outputs' shapes.
    """

    macs: int
    largest: int
    shapes: tuple[tuple[int, ...], ...]


class _Largest(TorchDispatchMode):
    """Records the size of the largest tensor returned by any operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = (math.prod(t.shape) for t in tree_leaves(result) if isinstance(t, torch.Tensor))
        self.largest = max(self.largest, *sizes, 0)
        return result


def effort_of(model: nn.Module, inputs: ExampleInputs) -> Effort | None:
    """The cost of a model's run on inputs of a form; None if it depends on values."""
    for kind in KINDS[:2]:
        fake_tensors = FakeTensors(kind)
        largest, count = _Largest(), FlopCounterMode(display=False)
        try:
            copied = fake_tensors.of_model(model).eval()
            with fake_tensors.running(), count, largest:
                outputs = outputs_of(copied, inputs.map(fake_tensors.of))
        except Exception:  # a foreign forward may raise anything, and the next kind may work
            continue
        shapes = tuple(tuple(output.shape) for output in outputs)
        return Effort(count.get_total_flops() // 2, largest.largest, shapes)
    return None
