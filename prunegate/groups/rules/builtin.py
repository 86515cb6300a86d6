"""The built-in rules, by operation.

`BUILTIN_RULES` maps an operation's name (``aten`` overload and in-place mark removed) to the function that
states its effect. An operation that is neither here nor tagged pointwise by torch pins the channels that it reads.
"""

from __future__ import annotations

from prunegate.groups.rules import (
    contraction,
    convolution,
    factory,
    indexing,
    joining,
    movement,
    normalisation,
    pointwise,
    products,
    reduction,
    spatial,
)
from prunegate.groups.rules.call import RuleTable

BUILTIN_RULES: RuleTable = {
    **pointwise.RULES,
    **movement.RULES,
    **joining.RULES,
    **indexing.RULES,
    **factory.RULES,
    **contraction.RULES,
    **products.RULES,
    **convolution.RULES,
    **normalisation.RULES,
    **reduction.RULES,
    **spatial.RULES,
}
