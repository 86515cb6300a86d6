"""Functions of torch that a gated model can run without the removed units of an argument."""

from __future__ import annotations

# For these it is enough that removed units are zero.
ZERO_NEUTRAL = frozenset(
    """matmul mm bmm einsum linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
    sum norm vector_norm linalg_vector_norm normalize _weight_norm""".split()
)
# Those that read units as a weight does. Attention scales by the root of the width that is left, so it has a
# masked form (`prunegate.gates.masked_functions`), for places of its queries.
READING = ZERO_NEUTRAL | {"scaled_dot_product_attention"}
FIRST_ARGUMENT_ONLY = frozenset(["scaled_dot_product_attention"])
# For the others there is a masked form too.
MASKABLE = READING | frozenset(
    "layer_norm rms_norm group_norm batch_norm mean var std var_mean std_mean amax softmax".split()
)
