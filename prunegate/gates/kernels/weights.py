"""Masks on all weights of a model in one kernel, and their gradients in two.

A weight is read in memory order, whatever the order of its dimensions. In memory order its entries form a matrix of
``outer`` rows and ``length · inner`` columns, where ``length`` is the masked axis: entry *p* has index ``(p // inner) %
length`` along it. The kernels find the weights through tables of addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl

# Entries per program of the forward kernel; columns and rows per program of the backward kernel.
_BLOCK = 2048
_COLUMNS, _ROWS, _ROWS_AT_ONCE = 128, 64, 16
# Mask entries, and partial sums for each, that a program of the last kernel adds at a time.
_PLACES, _PARTS = 32, 32
# Units per program of `_gather_sums`.
_UNITS = 64


@triton.jit  # type: ignore[untyped-decorator]
def _mask(  # type: ignore[no-untyped-def]
    sources, targets, masks, layout, owners, starts, kind: tl.constexpr, out_kind: tl.constexpr, block: tl.constexpr
):
    program = tl.program_id(0)
    owner = tl.load(owners + program)
    row = layout + owner * 4
    count, inner, length, offset = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    source = tl.load(sources + owner).to(tl.pointer_type(kind))
    target = tl.load(targets + owner).to(tl.pointer_type(out_kind))
    place = tl.load(starts + program) + tl.arange(0, block)
    inside = place < count
    mask = tl.load(masks + offset + (place // inner) % length, mask=inside, other=0.0)
    weight = tl.load(source + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(target + place, (weight * mask).to(out_kind), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _mask_backward(  # type: ignore[no-untyped-def]
    gradients, weights, products, masks, layout, owners, rows, columns, bases, partial,
    kind: tl.constexpr, out_kind: tl.constexpr, width: tl.constexpr, height: tl.constexpr, at_once: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    owner = tl.load(owners + program)
    entry = layout + owner * 4
    count, inner, length, offset = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2), tl.load(entry + 3)
    gradient = tl.load(gradients + owner).to(tl.pointer_type(out_kind))
    weight = tl.load(weights + owner).to(tl.pointer_type(kind))
    product = tl.load(products + owner).to(tl.pointer_type(kind))
    first = tl.load(rows + program)
    column = tl.load(columns + program) + tl.arange(0, width)
    across = inner * length
    mask = tl.load(masks + offset + column // inner, mask=column < across, other=0.0)
    total = tl.zeros((width,), dtype=tl.float32)
    for start in range(0, height, at_once):
        row = first + start + tl.arange(0, at_once)
        place = row[:, None] * across + column[None, :]
        inside = (column[None, :] < across) & (place < count)
        result = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(product + place, (result * mask[None, :]).to(kind), mask=inside)
        total += tl.sum(result * value, axis=0)
    base = tl.load(bases + program)
    tl.store(partial + base + column, total, mask=column < across)


@triton.jit  # type: ignore[untyped-decorator]
def _sum_parts(  # type: ignore[no-untyped-def]
    partial, sums, layout, parts, owners, places, width: tl.constexpr, at_once: tl.constexpr
):
    program = tl.program_id(0)
    owner = tl.load(owners + program)
    entry = layout + owner * 4
    inner, length, offset = tl.load(entry + 1), tl.load(entry + 2), tl.load(entry + 3)
    first, chunks = tl.load(parts + owner * 2), tl.load(parts + owner * 2 + 1)
    place = tl.load(places + program) + tl.arange(0, width)
    total = tl.zeros((width, at_once), dtype=tl.float32)
    for start in range(0, chunks * inner, at_once):
        number = start + tl.arange(0, at_once)
        where = first + (number // inner)[None, :] * (length * inner)
        where += place[:, None] * inner + (number % inner)[None, :]
        inside = (place[:, None] < length) & (number[None, :] < chunks * inner)
        total += tl.load(partial + where, mask=inside, other=0.0)
    tl.store(sums + offset + place, tl.sum(total, axis=1), mask=place < length)


@triton.jit  # type: ignore[untyped-decorator]
def _gather_sums(values, order, starts, sums, count, width: tl.constexpr):  # type: ignore[no-untyped-def]
    unit = tl.program_id(0) * width + tl.arange(0, width)
    known = unit < count
    first = tl.load(starts + unit, mask=known, other=0)
    number = tl.load(starts + unit + 1, mask=known, other=0) - first
    total = tl.zeros((width,), dtype=tl.float32)
    for place in range(0, tl.max(number, axis=0)):
        inside = known & (place < number)
        where = tl.load(order + first + place, mask=inside, other=0)
        total += tl.load(values + where, mask=inside, other=0.0)
    tl.store(sums + unit, total, mask=known)


@dataclass(frozen=True)
class Plan:
    """What is constant between steps: tables on the device, and the memory layout of the weights."""

    layout: torch.Tensor
    blocks: tuple[torch.Tensor, ...]  # owner and first entry of what a program of `_mask` takes
    tiles: tuple[torch.Tensor, ...]  # owner, row, column and place for sums of what one of `_mask_backward` takes
    places: tuple[torch.Tensor, ...]  # owner and first place of what one of `_sum_parts` takes
    parts: torch.Tensor  # for each owner where its sums begin, and how many there are for each column
    partial_size: int
    dtype: torch.dtype
    out_dtype: torch.dtype
    strides: Sequence[tuple[int, ...]]


def can_mask(weight: torch.Tensor) -> bool:
    """Whether a weight is dense in memory, and has a precision that the kernels support."""
    return weight.dtype in _KINDS and weight.numel() > 0 and torch.empty_like(weight).stride() == weight.stride()


def mask(plan: Plan, weights: Sequence[torch.Tensor], masks: torch.Tensor) -> list[torch.Tensor]:
    """All weights of a plan times their masks, which are float32 and flat."""
    result = _laid_out(plan, weights, plan.out_dtype)
    sources, targets = _addresses(weights), _addresses(result)
    _mask[(len(plan.blocks[0]),)](
        sources, targets, masks, plan.layout, *plan.blocks,
        kind=_KINDS[plan.dtype], out_kind=_KINDS[plan.out_dtype], block=_BLOCK,
    )  # fmt: skip
    return result


def mask_backward(
    plan: Plan,
    gradients: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    masks: torch.Tensor,
    sums: torch.Tensor,
) -> list[torch.Tensor]:
    """The weights' gradients; those of the masks are written to ``sums``, always summed in the same order."""
    laid = [
        given
        if given.stride() == strides
        else torch.empty_strided(given.shape, strides, dtype=given.dtype, device=given.device).copy_(given)
        for given, strides in zip(gradients, plan.strides, strict=True)
    ]
    products = _laid_out(plan, weights, plan.dtype)
    partial = torch.empty(plan.partial_size, dtype=torch.float32, device=masks.device)
    tables = _addresses(laid), _addresses(weights), _addresses(products)
    _mask_backward[(len(plan.tiles[0]),)](
        *tables, masks, plan.layout, *plan.tiles, partial, kind=_KINDS[plan.dtype], out_kind=_KINDS[plan.out_dtype],
        width=_COLUMNS, height=_ROWS, at_once=_ROWS_AT_ONCE,
    )  # fmt: skip
    _sum_parts[(len(plan.places[0]),)](
        partial, sums, plan.layout, plan.parts, *plan.places, width=_PLACES, at_once=_PARTS
    )
    return products


def gather_sums(values: torch.Tensor, order: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """The sums of ``values[order[starts[n]:starts[n + 1]]]`` for all n, always in the same order."""
    count = len(starts) - 1
    sums = torch.empty(count, dtype=torch.float32, device=values.device)
    _gather_sums[(triton.cdiv(count, _UNITS),)](values, order, starts, sums, count, width=_UNITS)
    return sums


def _laid_out(plan: Plan, weights: Sequence[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """Empty tensors with the memory layout of the weights."""
    device = weights[0].device
    return [
        torch.empty_strided(weight.shape, strides, dtype=dtype, device=device)
        for weight, strides in zip(weights, plan.strides, strict=True)
    ]


_KINDS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def plan(weights: Sequence[torch.Tensor], axes: Sequence[int], offsets: Sequence[int], out_dtype: torch.dtype) -> Plan:
    """The plan for weights of one precision on one device.

    Args:
        out_dtype: Precision of the masked weights.
        axes: The masked axis of each weight.
        offsets: Start of each weight's mask in the flat masks.
    """
    forms = [
        (weight.numel(), weight.stride(axis), weight.shape[axis], offset)
        for weight, axis, offset in zip(weights, axes, offsets, strict=True)
    ]
    device = weights[0].device
    blocks: list[tuple[int, int]] = []
    tiles: list[tuple[int, int, int, int]] = []
    parts: list[tuple[int, int]] = []
    places: list[tuple[int, int]] = []
    size = 0
    for owner, (count, inner, length, _) in enumerate(forms):
        blocks += [(owner, start) for start in range(0, count, _BLOCK)]
        across = inner * length
        outer = count // across
        chunks = -(-outer // _ROWS)
        parts.append((size, chunks))
        for chunk in range(chunks):
            base = size + chunk * across
            tiles += [(owner, chunk * _ROWS, column, base) for column in range(0, across, _COLUMNS)]
        size += chunks * across
        places += [(owner, start) for start in range(0, length, _PLACES)]

    def columns(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, ...]:
        return tuple(torch.tensor(rows, dtype=torch.int64).T.contiguous().to(device))

    layout = torch.tensor(forms, dtype=torch.int64).to(device)
    tables = columns(blocks), columns(tiles), columns(places), torch.tensor(parts).to(device)
    return Plan(layout, *tables, size, weights[0].dtype, out_dtype, [weight.stride() for weight in weights])


def _addresses(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return _table(tuple(tensor.data_ptr() for tensor in tensors), tensors[0].device)


@lru_cache(maxsize=256)
def _table(addresses: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """The addresses on the device; torch's allocator returns the same ones in every step."""
    if device.type != "cuda":
        return torch.tensor(addresses, dtype=torch.int64)
    return torch.tensor(addresses, dtype=torch.int64).pin_memory().to(device, non_blocking=True)
