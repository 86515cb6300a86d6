"""Shortcuts for operations without data give tensors of the form that torch's own kernels give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from prunegate.groups.solving.constraints import _first_period
from prunegate.groups.torch_workarounds import quick

aten = torch.ops.aten


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


LAYOUTS = {
    "contiguous": empty(2, 6, 8, 4),
    "permuted": empty(2, 4, 6, 8).permute(0, 2, 3, 1),
    "sliced": empty(2, 12, 8, 4)[:, ::2],
}
CALLS: dict[str, Any] = {
    "layer norm": lambda x: (aten.native_layer_norm.default, (x, [4], empty(4), empty(4), 1e-5)),
    "roll": lambda x: (aten.roll.default, (x, [1, 2], [1, -1])),
    "flat roll": lambda x: (aten.roll.default, (x, [1])),
    "contiguous clone": lambda x: (aten.clone.default, (x,), {"memory_format": torch.contiguous_format}),
    "clone": lambda x: (aten.clone.default, (x,)),
    "masked fill": lambda x: (aten.masked_fill.Scalar, (x, empty(2, 6, 8, 4, dtype=torch.bool), -1.0)),
    "broadcast fill": lambda x: (aten.masked_fill.Scalar, (x, empty(8, 1, dtype=torch.bool), -1.0)),
    "equal": lambda x: (aten.eq.Scalar, (x, 0)),
    "by a number": lambda x: (aten.mul.Tensor, (x, 0.5)),
    "minus a vector": lambda x: (aten.sub.Tensor, (x, empty(1, 1, 1, 4))),
    "added to": lambda x: (aten.add_.Tensor, (x, empty(2, 6, 8, 4))),
    "of whole numbers": lambda x: (aten.mul.Tensor, (x.to(torch.int64), 2.5)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CALLS)
def test_shortcuts_give_the_form_of_torchs_kernels(name: str, layout: str) -> None:
    func, args, kwargs = (*CALLS[name](LAYOUTS[layout]), {})[:3]
    forms = []
    for results in (func(*args, **kwargs), quick.run(func, args, kwargs)):
        tensors = results if isinstance(results, tuple) else (results,)
        forms.append([(t.shape, t.stride(), t.dtype, t.device) for t in tensors])
    assert forms[0] == forms[1]


def test_only_repeated_ties_are_shortened() -> None:
    ids = np.arange(600)
    left, right = np.tile(ids, 4), np.tile(ids + 600, 4)
    assert [len(side) for side in _first_period(left, right)] == [600, 600]
    for other in (np.repeat(ids, 4), np.arange(2400), np.concatenate([np.tile(ids, 3), ids[::-1]])):
        assert [len(side) for side in _first_period(left, other)] == [2400, 2400]
        assert [len(side) for side in _first_period(other, right)] == [2400, 2400]
