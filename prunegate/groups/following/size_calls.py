"""Function calls that take sizes or indices, and their positions in the model's code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prunegate.groups.following.code_places import CodePlace

# Functions with numeric arguments for the size of their result, or for a part of a tensor.
SIZED = frozenset(
    """view reshape unflatten expand broadcast_to new_zeros new_ones new_empty new_full zeros ones empty full rand randn
    split split_with_sizes unsafe_split unsafe_chunk chunk tensor_split getitem narrow select repeat tile layer_norm
    rms_norm group_norm conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d arange linspace
    eye pad multi_head_attention_forward""".split()
)
# Functions that compute with numbers which code may have derived from sizes: scales, counts.
SCALED = frozenset(
    """mul rmul imul mul_ multiply div div_ divide truediv rtruediv itruediv true_divide floordiv add radd iadd add_ sub
    rsub isub sub_ pow rpow pow_ clamp full_like fill_ masked_fill masked_fill_ tensor baddbmm addmm
    scaled_dot_product_attention""".split()
)
# Functions that take the sizes of a layer, and do not show how a model's code handles its tensors.
OF_LAYERS = SCALED | frozenset(
    """layer_norm rms_norm group_norm conv1d conv2d conv3d conv_transpose1d conv_transpose2d
    conv_transpose3d pad multi_head_attention_forward""".split()
)


@dataclass(slots=True, unsafe_hash=True)  # never changed; frozen dataclasses are slower to create
class SizeCallKey:
    """One call in a run: the module call it is part of, its position, and that it is the n-th call there."""

    module: str
    number: int
    place: CodePlace
    repetition: int


@dataclass(slots=True)
class SizeCall:
    """The arguments and results of such a call, with tape numbers instead of tensors."""

    function: str
    args: Any
    kwargs: Any
    result: Any = None


def is_scaled(name: str, args: Any, kwargs: Any) -> bool:
    """Whether a call is of a function that computes with numbers, and has one as an argument."""
    return name in SCALED and not _NUMBERS.isdisjoint(map(type, (*args, *kwargs.values())))


_NUMBERS = frozenset({int, float})
