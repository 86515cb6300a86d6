"""Layer normalisation over the kept positions of each row: one kernel forward, one and a sum backward."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Longer rows do not fit into a program's registers.
LONGEST = 16_384


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    x, mask, weight, bias, out, mean, scale, columns, eps,
    has_weight: tl.constexpr, has_bias: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < columns
    results = tl.load(x + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    keep = tl.load(mask + column, mask=inside, other=0.0)
    count = tl.sum(keep, axis=0)
    middle = tl.sum(results * keep, axis=0) / count
    centred = results - middle
    spread = tl.sum(centred * centred * keep, axis=0) / count
    factor = 1.0 / tl.sqrt(spread + eps)
    result = centred * factor
    if has_weight:
        result = result * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if has_bias:
        result = result + tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * columns + column, result.to(out.dtype.element_ty), mask=inside)
    tl.store(mean + row, middle)
    tl.store(scale + row, factor)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    gradient, x, mask, weight, mean, scale, of_x, partial, rows, columns, eps,
    has_weight: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, block)
    inside = column < columns
    keep = tl.load(mask + column, mask=inside, other=0.0)
    count = tl.sum(keep, axis=0)
    factor = tl.full((block,), 1.0, dtype=tl.float32)
    if has_weight:
        factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    of_weight = tl.zeros((block,), dtype=tl.float32)
    of_bias = tl.zeros((block,), dtype=tl.float32)
    of_mask = tl.zeros((block,), dtype=tl.float32)
    row = program.to(tl.int64)
    while row < rows:
        result = tl.load(x + row * columns + column, mask=inside, other=0.0).to(tl.float32)
        above = tl.load(gradient + row * columns + column, mask=inside, other=0.0).to(tl.float32)
        inverse = tl.load(scale + row)
        normal = tl.where(inside, (result - tl.load(mean + row)) * inverse, 0.0)
        scaled = above * factor
        first = tl.sum(scaled, axis=0) / count
        second = tl.sum(scaled * normal, axis=0) / count
        change = inverse * (scaled - keep * (first + normal * second))
        tl.store(of_x + row * columns + column, change.to(of_x.dtype.element_ty), mask=inside)
        of_weight += above * normal
        of_bias += above
        of_mask -= first * normal + 0.5 * second * (normal * normal - 1.0 + eps * inverse * inverse)
        row += programs
    start = partial + program * columns + column
    tl.store(start, of_mask, mask=inside)
    tl.store(start + programs * columns, of_weight, mask=inside)
    tl.store(start + 2 * programs * columns, of_bias, mask=inside)


def forward(
    x: torch.Tensor,
    mask: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The normalised rows in ``dtype``, and each row's mean and inverse deviation in float32."""
    rows, columns = x.shape
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    mean, scale = (torch.empty(rows, dtype=torch.float32, device=x.device) for _ in range(2))
    block = triton.next_power_of_2(columns)
    _forward[(rows,)](
        x, mask, x if weight is None else weight, x if bias is None else bias, out, mean, scale, columns,
        eps, has_weight=weight is not None, has_bias=bias is not None, block=block, num_warps=_warps(block),
    )  # fmt: skip
    return out, mean, scale


def backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    mask: torch.Tensor,
    mean: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of x, and those of mask, weight and bias, shape (3, channels).

    Sums over rows always have the same order.
    """
    rows, columns = x.shape
    programs = min(rows, 4 * _processors(x.device))
    of_x = torch.empty_like(x)
    partial = torch.empty(3, programs, columns, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(columns)
    _backward[(programs,)](
        gradient, x, mask, x if weight is None else weight, mean, scale, of_x, partial, rows, columns, eps,
        has_weight=weight is not None, block=block, num_warps=_warps(block),
    )  # fmt: skip
    return of_x, partial.sum(1)


def _warps(block: int) -> int:
    return min(max(block // 256, 1), 16)


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
