"""Torch functions that a gated model can run with the removed units of an argument masked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# For these it is enough that removed units are zero.
ZERO_NEUTRAL = frozenset(
    """matmul mm bmm mv dot vdot einsum linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
    sum norm vector_norm linalg_norm linalg_vector_norm normalize _weight_norm cumsum cosine_similarity cdist
    bilinear""".split()
)
# In these, every argument with the units is masked, as each is also summed separately.
EACH_BY_ITSELF = frozenset("cosine_similarity cdist".split())
# Functions that read units like a weight. Attention scales by the root of the kept width.
READING = ZERO_NEUTRAL | {"scaled_dot_product_attention"}
# All except the neutral ones have a form that masks positions of the first argument
# (`prunegate.gates.masked_functions`).
MASKABLE = READING | frozenset(
    """layer_norm rms_norm group_norm batch_norm mean var std var_mean std_mean amax amin max min aminmax logsumexp
    logcumsumexp prod softmax softmin log_softmax pairwise_distance""".split()
)


def function_name(func: Callable[..., Any]) -> str:
    """A function's name without the underscores of operators and in-place forms: ``x @ y`` is ``matmul``."""
    name = getattr(func, "__name__", "")
    return name.strip("_") if name.startswith("__") else name
