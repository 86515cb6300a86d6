"""Calls of `torch.nn.functional.multi_head_attention_forward` in a model's own code, after the removal of heads or
channels.

The function assumes that the heads together are as wide as the input. If that no longer holds, the same attention is
computed from the weights in the call.
"""

from __future__ import annotations

import inspect
from typing import NamedTuple

import torch
import torch.nn.functional as F

from prunegate.compaction.cut_sizes import CutSizes
from prunegate.compaction.narrow_attention import Heads, attend, heads_left
from prunegate.compaction.plan import Mask
from prunegate.compaction.size_rules import CannotRewriteError
from prunegate.groups import Value
from prunegate.groups.following.size_calls import SizeCall

_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


def heads_of_call(call: SizeCall, sizes: CutSizes) -> Heads | None:
    """The heads that are kept of a call of the dense run; None if the cut does not affect the call.

    Raises:
        CannotRewriteError: It is given keys and values, or the kept channels are neither whole heads nor the same
            dimensions of all heads.
    """
    given = _SIGNATURE.bind(*call.args, **call.kwargs).arguments
    weights = {name: given[name] for name in _WEIGHTS if isinstance(given.get(name), Value)}
    masks: dict[str, dict[int, Mask]] = {}
    for name, weight in weights.items():
        masks[name] = {dim: mask for dim, mask in enumerate(sizes.kept(weight.number)) if mask is not None}
    if not any(masks.values()):
        return None
    if given.get("static_k") is not None or given.get("static_v") is not None or not weights:
        raise CannotRewriteError("an attention that is given its keys and values")
    count = int(given["num_heads"])
    rows = {name: sizes.tape.shapes[weight.number][0] for name, weight in weights.items()}
    width = (rows["in_proj_weight"] // 3 if "in_proj_weight" in rows else rows["q_proj_weight"]) // count
    value_width = rows["v_proj_weight"] // count if "v_proj_weight" in rows else width
    left = heads_left(Heads(tuple(range(count)), count, width, value_width, width), masks)
    if left is None:
        raise CannotRewriteError("an attention that keeps neither whole heads nor the same dimensions of all heads")
    return left


class _Layer(NamedTuple):
    """The arguments of a call, under the names that `nn.MultiheadAttention` uses."""

    in_proj_weight: torch.Tensor | None
    q_proj_weight: torch.Tensor | None
    k_proj_weight: torch.Tensor | None
    v_proj_weight: torch.Tensor | None
    in_proj_bias: torch.Tensor | None
    bias_k: torch.Tensor | None
    bias_v: torch.Tensor | None
    add_zero_attn: bool
    dropout: float
    training: bool
    out_weight: torch.Tensor
    out_bias: torch.Tensor | None
    batch_first: bool = False

    def out_proj(self, y: torch.Tensor) -> torch.Tensor:
        return F.linear(y, self.out_weight, self.out_bias)


def attend_with(
    heads: Heads,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: torch.Tensor | None,
    in_proj_bias: torch.Tensor | None,
    bias_k: torch.Tensor | None,
    bias_v: torch.Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: torch.Tensor,
    out_proj_bias: torch.Tensor | None,
    training: bool = True,
    key_padding_mask: torch.Tensor | None = None,
    need_weights: bool = True,
    attn_mask: torch.Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: torch.Tensor | None = None,
    k_proj_weight: torch.Tensor | None = None,
    v_proj_weight: torch.Tensor | None = None,
    static_k: None = None,
    static_v: None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Torch's function, with the kept heads as an additional first argument."""
    apart = use_separate_proj_weight
    layer = _Layer(
        None if apart else in_proj_weight,
        q_proj_weight if apart else None,
        k_proj_weight if apart else None,
        v_proj_weight if apart else None,
        in_proj_bias,
        bias_k,
        bias_v,
        add_zero_attn,
        dropout_p,
        training,
        out_proj_weight,
        out_proj_bias,
    )
    return attend(
        layer, heads, query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
    )
