"""Attention queries with some head dimensions masked, whose number sets the default scale.

With m the mask, K = Σ m of D dimensions and r = (D/K)^(1/2), the query becomes q·m·r: its products with the keys,
scaled by D^(−1/2) as torch does, are those of K dimensions scaled by K^(−1/2). For the gradient g of the result and P =
Σ g·q over all positions that share the mask, ∂q = g·m·r and ∂m = r·P − r/(2K)·Σ P·m.
"""

from __future__ import annotations

from typing import Any

import torch

from prunegate.gates.operations import are_followed


def masked_query(query: torch.Tensor, mask: torch.Tensor, dtype: torch.dtype, scales: bool) -> torch.Tensor:
    """The query times its mask, in ``dtype``.

    Args:
        mask: float32 or wider, broadcasts over the query, with the head dimensions last.
        scales: Whether attention uses its default scale.
    """
    if are_followed():
        return _by_operations(query, mask, dtype, scales)
    return _MaskedQuery.apply(query, mask, dtype, scales)  # type: ignore[no-any-return]


def _by_operations(query: torch.Tensor, mask: torch.Tensor, dtype: torch.dtype, scales: bool) -> torch.Tensor:
    wide = torch.promote_types(query.dtype, mask.dtype)
    factor = mask * (query.shape[-1] / mask.sum(-1, keepdim=True)).sqrt() if scales else mask
    return (query.to(wide) * factor).to(dtype)


class _MaskedQuery(torch.autograd.Function):
    """Saves the query in its own precision for the backward pass, not a wider copy."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, mask: torch.Tensor, dtype: torch.dtype, scales: bool) -> torch.Tensor:
        rate = (mask.mean(-1, keepdim=True) if scales else torch.ones_like(mask[..., :1])).rsqrt()
        factor = mask * rate
        ctx.save_for_backward(query, mask, rate, factor)
        ctx.dtype, ctx.scales = dtype, scales
        return torch.mul(query, factor, out=torch.empty_like(query, dtype=dtype))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, mask, rate, factor = ctx.saved_tensors
        if torch.is_grad_enabled():  # second-order gradients are requested
            wanted = [tensor for tensor in (query, mask) if tensor.requires_grad]
            out = _by_operations(query, mask, ctx.dtype, ctx.scales)
            result = iter(torch.autograd.grad(out, wanted, gradient, create_graph=True))
            return (*(next(result) if tensor.requires_grad else None for tensor in (query, mask)), None, None)
        of_query = torch.mul(gradient, factor, out=torch.empty_like(query))
        shared = [
            dim for dim in range(query.dim()) if dim < query.dim() - mask.dim() or mask.shape[dim - query.dim()] == 1
        ]
        product = (gradient * query).sum(shared, keepdim=True, dtype=mask.dtype).reshape(mask.shape)
        of_mask = rate * product
        if ctx.scales:
            kept = mask.sum(-1, keepdim=True)
            of_mask = of_mask - 0.5 * (rate / kept) * (product * mask).sum(-1, keepdim=True)
        return of_query, of_mask, None, None
