"""The sizes that torch's own layers store as attributes, computed from their sliced tensors.

There is one function per kind of layer, looked up along the layer's base classes, so that subclasses (such as timm's
BatchNormAct2d) use that of the layer they extend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import nn

from prunegate.compaction.plan import AttributeValue, Mask

# For each tensor of the module, the kept positions of each axis that was cut.
Masks: TypeAlias = Mapping[str, Mapping[int, Mask]]
SizeRule: TypeAlias = Callable[[nn.Module, Masks], dict[str, AttributeValue]]


def sizes_after_slicing(module: nn.Module, masks: Masks) -> dict[str, AttributeValue]:
    """The size attributes that match the module's current tensors."""
    for cls in type(module).__mro__:
        rule = LAYER_SIZES.get(cls)
        if rule is not None:
            return rule(module, masks)
    return {}


def _convolution(module: nn.Module, masks: Masks) -> dict[str, AttributeValue]:
    weight, transposed = _tensor(module, "weight"), bool(module.transposed)
    groups = _int(module, "groups")
    # Groups are contiguous along this axis. Whole groups may have been removed, or one position in every group; in both
    # cases a group exists as long as any of its positions does.
    grouped = masks.get("weight", {}).get(0)
    if grouped is not None:
        groups = int(grouped.reshape(groups, -1).any(axis=1).sum())
    first, second = weight.shape[0], weight.shape[1] * groups
    inputs, outputs = (first, second) if transposed else (second, first)
    return {"in_channels": inputs, "out_channels": outputs, "groups": groups}


def _linear(module: nn.Module, masks: Masks) -> dict[str, AttributeValue]:
    outputs, inputs = _tensor(module, "weight").shape
    return {"in_features": inputs, "out_features": outputs}


def _bilinear(module: nn.Module, masks: Masks) -> dict[str, AttributeValue]:
    outputs, first, second = _tensor(module, "weight").shape
    return {"in1_features": first, "in2_features": second, "out_features": outputs}


def _per_channel_norm(module: nn.Module, masks: Masks) -> dict[str, AttributeValue]:
    for name in ("weight", "running_mean"):
        tensor = getattr(module, name, None)
        if isinstance(tensor, torch.Tensor):
            return {"num_features": tensor.shape[0]}
    return {}


def _norm_over_last_dims(module: nn.Module, masks: Masks) -> dict[str, AttributeValue]:
    weight = getattr(module, "weight", None)
    return {} if weight is None else {"normalized_shape": tuple(weight.shape)}


def _group_norm(module: nn.Module, masks: Masks) -> dict[str, AttributeValue]:
    groups, kept = _int(module, "num_groups"), masks.get("weight", {}).get(0)
    if kept is not None:
        groups = int(kept.reshape(groups, -1).any(axis=1).sum())
    return {"num_groups": groups, "num_channels": _tensor(module, "weight").shape[0]} if kept is not None else {}


def _embedding(module: nn.Module, masks: Masks) -> dict[str, AttributeValue]:
    rows, columns = _tensor(module, "weight").shape
    return {"num_embeddings": rows, "embedding_dim": columns}


def _recurrent(module: nn.Module, masks: Masks) -> dict[str, AttributeValue]:
    inputs = _tensor(module, "weight_ih_l0").shape[1]
    projection = getattr(module, "weight_hr_l0", None)
    if projection is None:
        return {"input_size": inputs, "hidden_size": _tensor(module, "weight_hh_l0").shape[1]}
    return {"input_size": inputs, "hidden_size": projection.shape[1], "proj_size": projection.shape[0]}


def _recurrent_cell(module: nn.Module, masks: Masks) -> dict[str, AttributeValue]:
    return {"input_size": _tensor(module, "weight_ih").shape[1], "hidden_size": _tensor(module, "weight_hh").shape[1]}


def _prelu(module: nn.Module, masks: Masks) -> dict[str, AttributeValue]:
    return {"num_parameters": _tensor(module, "weight").shape[0]}


def _tensor(module: nn.Module, name: str) -> torch.Tensor:
    tensor = getattr(module, name)
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{type(module).__name__}.{name} is no tensor")
    return tensor


def _int(module: nn.Module, name: str) -> int:
    return int(getattr(module, name))


LAYER_SIZES: dict[type[nn.Module], SizeRule] = {
    nn.modules.conv._ConvNd: _convolution,
    nn.Linear: _linear,
    nn.Bilinear: _bilinear,
    nn.modules.batchnorm._NormBase: _per_channel_norm,
    nn.LayerNorm: _norm_over_last_dims,
    nn.RMSNorm: _norm_over_last_dims,
    nn.GroupNorm: _group_norm,
    nn.Embedding: _embedding,
    nn.PReLU: _prelu,
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: _recurrent_cell,
}
