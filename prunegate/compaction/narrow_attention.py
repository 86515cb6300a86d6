"""torch's attention layer after the removal of heads or input channels.

`nn.MultiheadAttention` assumes that its heads together are as wide as its input. If that no longer holds, the layer
computes the same attention from its remaining weights, for any length, mask and mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from prunegate.compaction.derived_classes import derive, is_derived
from prunegate.compaction.plan import Mask

_HEADS = "_prunegate_heads"


class Heads(NamedTuple):
    """The kept heads.

    Attributes:
        kept: Which of the dense layer's heads are kept, for masks with one part per head.
        dense: Number of heads of the dense layer.
        width: Width of each head's queries and keys.
        value_width: Width of each head's values.
        dense_width: The dense layer divides its attention logits by the root of this when it returns its weights.
    """

    kept: tuple[int, ...]
    dense: int
    width: int
    value_width: int
    dense_width: int


def fit_attention(module: nn.Module, masks: Mapping[str, Mapping[int, Mask]]) -> dict[str, int]:
    """Make a torch attention layer run with the kept part of its weights; return its new size attributes.

    The layer's tensors may be cut before or after; its attributes still have to be the old ones.

    Args:
        masks: For each of the layer's own tensors, the kept positions of its cut axes.

    Returns:
        An empty dict if it is not such a layer, is not cut, or does not keep whole heads.
    """
    if not isinstance(module, nn.MultiheadAttention) or masks.keys().isdisjoint(_WEIGHTS):
        return {}
    if type(module).forward is not nn.MultiheadAttention.forward and not is_derived(module, _narrow_forward):
        return {}  # a subclass with its own forward
    known = heads_of(module)
    if known is None:
        known = Heads(tuple(range(module.num_heads)), module.num_heads, *(module.head_dim,) * 3)
    left = heads_left(known, masks)
    if left is None:
        return {}
    vars(module)[_HEADS] = left
    derive(module, _narrow_forward)
    inputs = masks.get("in_proj_weight", masks.get("q_proj_weight", {})).get(1)
    sizes = {"num_heads": len(left.kept), "head_dim": left.width}
    return sizes if inputs is None else {**sizes, "embed_dim": int(inputs.sum())}


def heads_left(known: Heads, masks: Mapping[str, Mapping[int, Mask]]) -> Heads | None:
    """The heads that masks keep; None if they are not whole heads of equal width."""
    count = len(known.kept)
    rows = {part: _rows(masks, part, count, known) for part in "qkv"}
    if any(kept_rows is None for kept_rows in rows.values()):
        return None
    kept: Any = np.asarray(rows["q"]).any(axis=1)
    widths = {part: set(kept_rows[kept].sum(axis=1).tolist()) for part, kept_rows in rows.items()}  # type: ignore[index]
    alike = all((kept_rows.any(axis=1) == kept).all() for kept_rows in rows.values())  # type: ignore[union-attr]
    if not alike or any(len(some) != 1 for some in widths.values()) or widths["q"] != widths["k"]:
        return None
    left = tuple(head for head, stays in zip(known.kept, kept, strict=True) if stays)
    return Heads(left, known.dense, widths["q"].pop(), widths["v"].pop(), known.dense_width)


def heads_of(module: nn.Module) -> Heads | None:
    """The kept heads of a layer from `fit_attention`; None for others."""
    return vars(module).get(_HEADS)


_WEIGHTS = frozenset({"in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"})


def _rows(masks: Mapping[str, Mapping[int, Mask]], part: str, count: int, known: Heads) -> Mask | None:
    """The kept rows of one of the three projections, shape (heads, width); None if they do not have this form."""
    width = known.value_width if part == "v" else known.width
    if f"{part}_proj_weight" in masks or "in_proj_weight" not in masks:
        mask = masks.get(f"{part}_proj_weight", {}).get(0)
    else:
        mask = masks["in_proj_weight"].get(0)
        if mask is not None:
            before = {"q": 0, "k": count * known.width, "v": 2 * count * known.width}[part]
            mask = mask[before : before + count * width]
    if mask is None:
        return np.ones((count, width), dtype=bool)
    return mask.reshape(count, width) if len(mask) == count * width else None


def _narrow_forward(cls: Any) -> Callable[..., Any]:
    def forward(
        self: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Same interface as `nn.MultiheadAttention`."""
        return attend(
            self, self._prunegate_heads, query, key, value, key_padding_mask, need_weights, attn_mask,
            average_attn_weights, is_causal,
        )  # fmt: skip

    return forward


def attend(
    layer: Any,
    heads: Heads,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_padding_mask: torch.Tensor | None,
    need_weights: bool,
    attn_mask: torch.Tensor | None,
    average_attn_weights: bool,
    is_causal: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The attention of ``layer``, which has the weights and settings of an `nn.MultiheadAttention`."""
    is_batched = query.dim() == 3
    q, k, v = (_batch_first(layer, tensor, is_batched) for tensor in (query, key, value))
    q, k, v = _projected(layer, q, k, v, heads)
    if layer.bias_k is not None:
        k, v = (torch.cat([t, bias.expand(t.shape[0], 1, -1)], 1) for t, bias in ((k, layer.bias_k), (v, layer.bias_v)))
    q, k, v = (t.view(*t.shape[:2], len(heads.kept), -1).transpose(1, 2) for t in (q, k, v))
    if layer.add_zero_attn:
        k, v = (torch.cat([t, t.new_zeros((*t.shape[:2], 1, t.shape[3]))], 2) for t in (k, v))
    causal = is_causal and key_padding_mask is None and not need_weights
    mask = None if causal else _mask(heads, attn_mask, key_padding_mask, q, k)
    dropout = layer.dropout if layer.training else 0.0
    if need_weights:
        weights = q / math.sqrt(heads.dense_width) @ k.transpose(-2, -1)
        weights = (weights if mask is None else weights + mask).softmax(-1)
        y = F.dropout(weights, dropout) @ v if dropout else weights @ v
    else:
        weights = None
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal)
    y = layer.out_proj(y.transpose(1, 2).flatten(2))
    if weights is not None:
        weights = weights.mean(1) if average_attn_weights else weights
        weights = weights if is_batched else weights.squeeze(0)
    if not is_batched:
        return y.squeeze(0), weights
    return (y if layer.batch_first else y.transpose(0, 1)), weights


def _batch_first(layer: Any, tensor: torch.Tensor, is_batched: bool) -> torch.Tensor:
    if not is_batched:
        return tensor.unsqueeze(0)
    return tensor if layer.batch_first else tensor.transpose(0, 1)


def _projected(
    layer: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: Heads
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    count = len(heads.kept)
    rows = [count * heads.width, count * heads.width, count * heads.value_width]
    if layer.in_proj_weight is not None:
        weights = layer.in_proj_weight.split(rows)
    else:
        weights = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    biases = (None, None, None) if layer.in_proj_bias is None else layer.in_proj_bias.split(rows)
    one, two, three = (F.linear(x, w, b) for x, w, b in zip((q, k, v), weights, biases, strict=True))
    return one, two, three


def _mask(
    heads: Heads,
    attn_mask: torch.Tensor | None,
    key_padding_mask: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
) -> torch.Tensor | None:
    """Both masks as one bias of the logits that broadcasts over (batch, heads, queries, keys)."""
    added = None
    if attn_mask is not None:
        added = _additive(attn_mask, q)
        if added.dim() == 3:  # one per head, either of the dense layer or of the kept heads
            added = added.view(q.shape[0], -1, *added.shape[1:])
            if len(heads.kept) < added.shape[1]:
                added = added[:, list(heads.kept)]
    if key_padding_mask is not None:
        padding = key_padding_mask if key_padding_mask.dim() == 2 else key_padding_mask.unsqueeze(0)
        padding = _additive(padding, q)[:, None, None]
        added = padding if added is None else added + padding
    if added is not None and added.shape[-1] < k.shape[2]:  # for the keys added by a bias or by zeros
        added = F.pad(added, (0, k.shape[2] - added.shape[-1]))
    return added


def _additive(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if mask.dtype is torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)
    return mask.to(like.dtype)
