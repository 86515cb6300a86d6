"""The masked weights of one forward pass: every weight times its masks, all in one operation.

Two registered torch operations, one per direction, hide the implementation from counters, tracers and compilers: on
CUDA a fixed number of kernels serves all weights (`prunegate.gates.kernels`), elsewhere each weight has its own
product. Both are plain arithmetic: ``W · m`` along the masked axes, and for the masks' gradient the sum of ``∂L/∂(W ·
m) · W`` over all other axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prunegate.gates import kernels
from prunegate.gates.operations import are_followed, operation


@dataclass(frozen=True)
class MaskedAxes:
    """Which axes of which weights are masked; the masks are concatenated in a flat tensor.

    Attributes:
        owners: For each masked axis, the index of its weight, ascending.
        axes: For each, the axis.
        lengths: For each, the length of its mask.
    """

    owners: tuple[int, ...]
    axes: tuple[int, ...]
    lengths: tuple[int, ...]


def masked_weights(
    weights: Sequence[torch.Tensor],
    masks: torch.Tensor,
    where: MaskedAxes,
    narrow: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
) -> list[torch.Tensor]:
    """The masked weights, in their own precision.

    Args:
        masks: Flat, float32, on the weights' device; differentiable, like the weights.
        narrow: Indices of weights that are returned in ``dtype`` instead.
    """
    if not weights:
        return []
    if are_followed():
        return _by_operations(weights, masks, where, narrow, dtype)
    return list(_MaskedWeights.apply(where, tuple(narrow), dtype, masks, *weights))


def _by_operations(
    weights: Sequence[torch.Tensor],
    masks: torch.Tensor,
    where: MaskedAxes,
    narrow: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
) -> list[torch.Tensor]:
    """The same with ordinary operations, which compilers fuse with the operations that read the weights."""
    result = list(weights)
    parts = torch.split(masks, list(where.lengths))
    for owner, axis, mask in zip(where.owners, where.axes, parts, strict=True):
        result[owner] = result[owner] * _shaped(mask, result[owner], axis)
    for number in narrow:
        result[number] = result[number].to(dtype)
    return result


def _shaped(mask: torch.Tensor, like: torch.Tensor, axis: int) -> torch.Tensor:
    return mask.to(like.dtype).reshape([-1 if dim == axis else 1 for dim in range(like.dim())])


class _MaskedWeights(torch.autograd.Function):
    """`masked_weights` with a backward pass that can run several times, for a part of the weights at a time.

    Checkpointing with recomputation in the backward pass needs this. Autograd's own saved tensors are freed after the
    first time, so they are not used, and their check for in-place changes of the weights is done here.
    """

    @staticmethod
    def forward(
        ctx: Any,
        where: MaskedAxes,
        narrow: tuple[int, ...],
        dtype: torch.dtype,
        masks: torch.Tensor,
        *weights: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.where, ctx.narrow, ctx.dtype = where, narrow, dtype
        ctx.masks, ctx.weights = masks, weights
        ctx.versions = [_version(weight) for weight in weights]
        return tuple(_mask(weights, masks, where.owners, where.axes, narrow, dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[Any, ...]:
        where: MaskedAxes = ctx.where
        for weight, version in zip(ctx.weights, ctx.versions, strict=True):
            if _version(weight) != version:
                raise RuntimeError(
                    f"a weight of shape {tuple(weight.shape)} has been changed in place between the gated model's "
                    "forward and backward pass. Its gradient would be wrong. Step the optimiser after "
                    "loss.backward()."
                )
        present = [n for n, gradient in enumerate(gradients) if gradient is not None]
        if not present:
            return (None, None, None, None, *(None for _ in gradients))
        if torch.is_grad_enabled():  # second-order gradients are requested
            return _differentiable_backward(ctx, gradients)
        number = {n: place for place, n in enumerate(present)}
        owners = [number.get(owner, -1) for owner in where.owners]
        products, masks = _mask_backward(
            [gradients[n] for n in present], [ctx.weights[n] for n in present], ctx.masks, owners, where.axes,
            where.lengths,
        )  # fmt: skip
        results: list[torch.Tensor | None] = [None] * len(gradients)
        for n, product in zip(present, products, strict=True):
            results[n] = product if ctx.needs_input_grad[4 + n] else None
        return (None, None, None, masks if ctx.needs_input_grad[3] else None, *results)


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _differentiable_backward(ctx: Any, gradients: Sequence[torch.Tensor | None]) -> tuple[Any, ...]:
    """The gradients of `_by_operations`, with their own graph."""
    inputs = (ctx.masks, *ctx.weights)
    outputs = _by_operations(ctx.weights, ctx.masks, ctx.where, ctx.narrow, ctx.dtype)
    present = [(out, gradient) for out, gradient in zip(outputs, gradients, strict=True) if gradient is not None]
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    asked, given = zip(*present, strict=True)
    result = iter(torch.autograd.grad(asked, wanted, given, create_graph=True, allow_unused=True))
    return (None, None, None, *(next(result) if tensor.requires_grad else None for tensor in inputs))


# The operations ---------------------------------------------------------------------------------


def _mask_form(
    weights: Sequence[torch.Tensor],
    masks: torch.Tensor,
    owners: Any,
    axes: Any,
    narrow: Sequence[int],
    dtype: torch.dtype,
) -> list[torch.Tensor]:
    # Devices have to agree here as in a real call.
    results = [torch.empty_like(weight * masks[:1].to(weight.dtype).sum()) for weight in weights]
    return [out.to(dtype) if number in narrow else out for number, out in enumerate(results)]


@operation(
    "mask(Tensor[] weights, Tensor masks, int[] owners, int[] axes, int[] narrow, ScalarType dtype) -> Tensor[]",
    _mask_form,
)
def _mask(
    weights: Sequence[torch.Tensor],
    masks: torch.Tensor,
    owners: Sequence[int],
    axes: Sequence[int],
    narrow: Sequence[int],
    dtype: torch.dtype,
) -> list[torch.Tensor]:
    result = list(weights)
    outs = [weight.dtype for weight in weights]
    for number in narrow:
        outs[number] = dtype
    parts = _parts(weights, owners, axes, outs)
    for numbers, plan in parts.for_kernels:
        made = _kernels().mask(plan, [weights[n] for n in numbers], masks)
        for n, masked in zip(numbers, made, strict=True):
            result[n] = masked
    for n in parts.others:
        for axis, start, stop in parts.of_weight[n]:
            result[n] = result[n] * _shaped(masks[start:stop], result[n], axis)
        result[n] = result[n].to(outs[n])
    return result


def _mask_backward_form(
    gradients: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], masks: torch.Tensor, *where: Any
) -> tuple[list[torch.Tensor], torch.Tensor]:
    products = [torch.empty_like(weight * gradient) for gradient, weight in zip(gradients, weights, strict=True)]
    return products, torch.zeros_like(masks)


@operation(
    "mask_backward(Tensor[] gradients, Tensor[] weights, Tensor masks, int[] owners, int[] axes, int[] lengths) "
    "-> (Tensor[], Tensor)",
    _mask_backward_form,
)
def _mask_backward(
    gradients: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    masks: torch.Tensor,
    owners: Sequence[int],
    axes: Sequence[int],
    lengths: Sequence[int],
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The weights' gradients, and the masks'; ``owners`` is -1 if an axis' weight has no gradient."""
    result = list(gradients)
    of_masks = torch.zeros_like(masks)
    parts = _parts(weights, owners, axes, [gradient.dtype for gradient in gradients], lengths)
    for numbers, plan in parts.for_kernels:
        some, above = [weights[n] for n in numbers], [gradients[n] for n in numbers]
        made = _kernels().mask_backward(plan, above, some, masks, of_masks)
        for n, product in zip(numbers, made, strict=True):
            result[n] = product
    for n in parts.others:
        weight, gradient = weights[n], gradients[n].to(weights[n].dtype)
        product = gradient * weight
        for axis, start, stop in parts.of_weight[n]:
            rest = product
            for other, first, last in parts.of_weight[n]:
                if other != axis:
                    rest = rest * _shaped(masks[first:last], weight, other)
            dims = [dim for dim in range(weight.dim()) if dim != axis]
            of_masks[start:stop] = rest.sum(dims) if dims else rest
            gradient = gradient * _shaped(masks[start:stop], weight, axis)
        result[n] = gradient
    return result, of_masks


class _Parts:
    """The masked axes by weight, and the weights for the kernels, grouped by their precisions.

    Args:
        outs: The precision of each masked weight.
    """

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        owners: Sequence[int],
        axes: Sequence[int],
        outs: Sequence[torch.dtype],
        lengths: Sequence[int],
    ) -> None:
        self.of_weight: list[list[tuple[int, int, int]]] = [[] for _ in weights]
        start = 0
        for owner, axis, length in zip(owners, axes, lengths, strict=True):
            if owner >= 0:
                self.of_weight[owner].append((axis, start, start + length))
            start += length
        self.others: list[int] = []
        by_kind: dict[tuple[torch.dtype, torch.dtype], list[int]] = {}
        served = kernels.serve(weights[0].device)
        for n, weight in enumerate(weights):
            if served and len(self.of_weight[n]) == 1 and _kernels().can_mask(weight):
                by_kind.setdefault((weight.dtype, outs[n]), []).append(n)
            else:
                self.others.append(n)
        self.for_kernels = [(numbers, self._plan(weights, numbers, out)) for (_, out), numbers in by_kind.items()]

    def _plan(self, weights: Sequence[torch.Tensor], numbers: Sequence[int], out: torch.dtype) -> Any:
        axes, starts, _ = zip(*(self.of_weight[n][0] for n in numbers), strict=True)
        return _kernels().plan([weights[n] for n in numbers], axes, starts, out)


# By the weights' addresses, which do not change between a model's steps.
_known: dict[tuple[Any, ...], _Parts] = {}
_MOST_KNOWN = 64


def _parts(
    weights: Sequence[torch.Tensor],
    owners: Sequence[int],
    axes: Sequence[int],
    outs: Sequence[torch.dtype],
    lengths: Sequence[int] | None = None,
) -> _Parts:
    if not kernels.serve(weights[0].device):
        return _Parts(weights, owners, axes, outs, lengths or _lengths(weights, owners, axes))
    key = (*(weight.data_ptr() for weight in weights), len(weights), *owners, *axes, *outs)
    result = _known.get(key)
    if result is None:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        result = _known[key] = _Parts(weights, owners, axes, outs, lengths or _lengths(weights, owners, axes))
    return result


def _lengths(weights: Sequence[torch.Tensor], owners: Sequence[int], axes: Sequence[int]) -> list[int]:
    return [weights[owner].shape[axis] for owner, axis in zip(owners, axes, strict=True)]


def _kernels() -> Any:
    from prunegate.gates.kernels import weights  # needs Triton

    return weights
