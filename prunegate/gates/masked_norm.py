"""Layer normalisation over kept channels, as one operation each way.

With m the mask, K = Σ m, a and v the mean and variance over kept channels, s = (v + ε)^(−1/2) and x̂ = (x − a)·s, the
output is x̂·w + b. For its gradient g, with S₁ = Σ g·w and S₂ = Σ g·w·x̂ over a row,

    ∂x = s·(g·w − m·(S₁ + x̂·S₂)/K),    ∂m = −Σ_rows (S₁·x̂ + ½·S₂·(x̂² − v·s²))/K.
"""

from __future__ import annotations

from typing import Any

import torch

from prunegate.gates import kernels
from prunegate.gates.operations import operation

# Entries processed at a time without custom kernels, so that they stay in the CPU's cache.
_AT_ONCE = 1 << 18


def masked_layer_norm(
    x: torch.Tensor,
    mask: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Normalise the last dimension of x over the positions that the mask keeps; the output is in ``dtype``.

    Args:
        mask: Shape (channels,), of 0.0 and 1.0, float32 or wider.
    """
    return _MaskedLayerNorm.apply(x, mask, weight, bias, eps, dtype)  # type: ignore[no-any-return]


def by_operations(
    x: torch.Tensor, mask: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """The same with ordinary operations, in the precision of x."""
    count = mask.sum()
    mean = (x * mask).sum(-1, keepdim=True) / count
    variance = ((x - mean).square() * mask).sum(-1, keepdim=True) / count
    x = (x - mean) * torch.rsqrt(variance + eps)
    if weight is not None:
        x = x * weight
    return x if bias is None else x + bias


class _MaskedLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        mask: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        out, mean, scale = _layer_norm(x, mask, weight, bias, eps, dtype)
        ctx.save_for_backward(x, mask, weight, bias, mean, scale)
        ctx.eps, ctx.dtype = eps, dtype
        # Later code may write into it (an in-place activation), which autograd forbids for a view created here.
        result: torch.Tensor = out.data if out._is_view() else out
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, mask, weight, bias, mean, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # second-order gradients are requested
            wide = torch.promote_types(x.dtype, mask.dtype)
            wanted = [t for t in (x, mask, weight, bias) if t is not None and t.requires_grad]
            out = by_operations(x.to(wide), mask, weight, bias, ctx.eps).to(ctx.dtype)
            result = iter(torch.autograd.grad(out, wanted, gradient, create_graph=True))
            return (
                *(next(result) if t is not None and t.requires_grad else None for t in (x, mask, weight, bias)),
                None,
                None,
            )
        of_x, of_channels = _layer_norm_backward(gradient, x, mask, mean, scale, weight, ctx.eps)
        of_mask, of_weight, of_bias = of_channels.unbind()
        return (
            of_x,
            of_mask.to(mask.dtype),
            None if weight is None else of_weight.to(weight.dtype),
            None if bias is None else of_bias.to(bias.dtype),
            None,
            None,
        )


def _layer_norm_form(
    x: torch.Tensor,
    mask: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    out = by_operations(x.to(torch.promote_types(x.dtype, mask.dtype)), mask, weight, bias, eps)
    rows = x.numel() // x.shape[-1]
    wide = torch.promote_types(x.dtype, torch.float32)
    return out.to(dtype), x.new_empty(rows, dtype=wide), x.new_empty(rows, dtype=wide)


@operation(
    "layer_norm(Tensor x, Tensor mask, Tensor? weight, Tensor? bias, float eps, ScalarType dtype) "
    "-> (Tensor, Tensor, Tensor)",
    _layer_norm_form,
)
def _layer_norm(
    x: torch.Tensor,
    mask: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = x.reshape(-1, x.shape[-1])
    if _kernels_serve(rows):
        from prunegate.gates.kernels import layer_norm

        out, mean, scale = layer_norm.forward(rows.contiguous(), mask.float(), weight, bias, eps, dtype)
        return out.view(x.shape), mean, scale
    out = torch.empty(rows.shape, dtype=dtype, device=x.device)
    mask = mask.to(torch.promote_types(x.dtype, torch.float32))
    mean, scale = (torch.empty(len(rows), dtype=mask.dtype, device=x.device) for _ in range(2))
    count = mask.sum()
    weight = torch.ones_like(mask) if weight is None else weight.to(mask.dtype)
    bias = torch.zeros_like(mask) if bias is None else bias.to(mask.dtype)
    for some in _chunks(rows):
        wide = rows[some].to(mask.dtype)
        middle = (wide @ mask).div_(count)
        centred = wide - middle[:, None]
        factor = ((centred * centred) @ mask).div_(count).add_(eps).rsqrt_()
        centred.mul_(factor[:, None])
        if dtype is mask.dtype:
            torch.addcmul(bias, centred, weight, out=out[some])
        else:
            out[some] = torch.addcmul(bias, centred, weight)
        mean[some], scale[some] = middle, factor
    return out.view(x.shape), mean, scale


def _layer_norm_backward_form(
    gradient: torch.Tensor,
    x: torch.Tensor,
    mask: torch.Tensor,
    mean: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    of_x = torch.empty_like(x + gradient.to(x.dtype), memory_format=torch.contiguous_format)
    return of_x, mean.new_empty(3, x.shape[-1])


@operation(
    "layer_norm_backward(Tensor gradient, Tensor x, Tensor mask, Tensor mean, Tensor scale, Tensor? weight, float eps) "
    "-> (Tensor, Tensor)",
    _layer_norm_backward_form,
)
def _layer_norm_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    mask: torch.Tensor,
    mean: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of x, and those of mask, weight and bias, shape (3, channels)."""
    columns = x.shape[-1]
    rows, above = x.reshape(-1, columns), gradient.reshape(-1, columns)
    if _kernels_serve(rows):
        from prunegate.gates.kernels import layer_norm

        of_x, of_channels = layer_norm.backward(
            above.contiguous(), rows.contiguous(), mask.float(), mean, scale, weight, eps
        )
        return of_x.view(x.shape), of_channels
    mask = mask.to(mean.dtype)
    count, taken = mask.sum(), -mask
    factor = torch.ones_like(mask) if weight is None else weight.to(mask.dtype)
    of_x = torch.empty_like(rows, memory_format=torch.contiguous_format)
    of_channels = torch.zeros(3, columns, dtype=mask.dtype, device=x.device)
    of_mask, of_weight, of_bias = of_channels.unbind()
    for some in _chunks(rows):
        wide, inverse = above[some].to(mask.dtype), scale[some][:, None]
        normal = torch.addcmul(-(mean[some][:, None] * inverse), rows[some].to(mask.dtype), inverse)
        product = wide * normal
        first, second = (wide @ factor).div_(count), (product @ factor).div_(count)
        of_weight += product.sum(0)
        of_bias += wide.sum(0)
        of_mask -= first @ normal + 0.5 * (second @ torch.mul(normal, normal, out=product))
        of_mask += 0.5 * (second * (1.0 - eps * inverse.square().squeeze(1))).sum()
        change = torch.addcmul(first[:, None], normal, second[:, None], out=product).mul_(taken)
        if of_x.dtype is mask.dtype:
            torch.addcmul(change, wide, factor, out=of_x[some]).mul_(inverse)
        else:
            of_x[some] = change.addcmul_(wide, factor).mul_(inverse)
    return of_x.view(x.shape), of_channels


def _kernels_serve(rows: torch.Tensor) -> bool:
    if rows.dtype is torch.float64 or not rows.numel() or not kernels.serve(rows.device):
        return False
    from prunegate.gates.kernels import layer_norm

    return rows.shape[1] <= layer_norm.LONGEST


def _chunks(rows: torch.Tensor) -> list[slice]:
    size = max(1, _AT_ONCE // max(1, rows.shape[1]))
    return [slice(start, start + size) for start in range(0, len(rows), size)]
