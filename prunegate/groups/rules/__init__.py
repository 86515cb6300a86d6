"""What each operation does to labels, one family of operations a file.

`RULES` maps an operation's name (``aten`` overload and in-place mark removed) to the function that
states its effect. An operation that is neither here nor tagged pointwise by torch pins what it reads.
"""

from __future__ import annotations

from prunegate.groups.rules import (
    contraction,
    convolution,
    factory,
    joining,
    movement,
    normalisation,
    pointwise,
    reduction,
    spatial,
)
from prunegate.groups.rules.call import Call, Rule, RuleTable

RULES: RuleTable = {
    **pointwise.RULES,
    **movement.RULES,
    **joining.RULES,
    **factory.RULES,
    **contraction.RULES,
    **convolution.RULES,
    **normalisation.RULES,
    **reduction.RULES,
    **spatial.RULES,
}

__all__ = ["RULES", "Call", "Rule", "RuleTable"]
