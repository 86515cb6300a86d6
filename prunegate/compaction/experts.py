"""Products of sorted rows with one matrix per expert, for widths and precisions that torch's kernel lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from prunegate.groups import Tape

# Their kernel only supports rows of a multiple of 16 bytes, and no double precision.
BY_EXPERTS = frozenset({"grouped_mm", "_grouped_mm"})


def of_any_width(func: Callable[..., Any], rows: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """`torch.nn.functional.grouped_mm` for any width, padding rows and matrices with zeros if the kernel needs it."""
    step = max(16 // rows.element_size(), 1)
    read, made = -weight.shape[-2] % step, -weight.shape[-1] % step
    if not read and not made:
        return func(rows, weight, *args, **kwargs)
    # In the layout of the matrices, which some models store transposed.
    transposed = weight.stride(-2) == 1
    pad = (0, read, 0, made) if transposed else (0, made, 0, read)
    matrices = nn.functional.pad(weight.transpose(-2, -1) if transposed else weight, pad)
    matrices = matrices.transpose(-2, -1) if transposed else matrices
    result = func(nn.functional.pad(rows, (0, read)), matrices, *args, **kwargs)
    return result[..., : weight.shape[-1]]


def in_double(rows: torch.Tensor, weight: torch.Tensor, offs: torch.Tensor, **_: Any) -> torch.Tensor:
    """`torch.nn.functional.grouped_mm` of sorted rows by its definition: each part times its own matrix."""
    bounds = [0, *offs.tolist()]
    parts = [rows[a:b] @ matrix for a, b, matrix in zip(bounds, bounds[1:], weight, strict=False)]
    rest = rows.new_zeros(rows.shape[0] - bounds[-1], weight.shape[2])
    return torch.cat([*parts, rest])


def modules_with_experts(tape: Tape) -> list[str]:
    """The modules whose own code multiplies by experts, with a kernel that supports only some widths."""
    results: dict[str, None] = {}
    for place, operation in enumerate(tape.operations):
        if operation.func._schema.name == "aten::_grouped_mm":
            around = [span.target for span in tape.spans if span.first <= place < span.last]
            results[next(target for target in reversed(around) if isinstance(target, str))] = None
    return list(results)
