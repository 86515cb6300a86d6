"""Newly created tensors: every dimension may take on the channels that it is combined with."""

from __future__ import annotations

from prunegate.groups.rules.call import Call, RuleTable, table
from prunegate.groups.solving.labels import Labels, on_axis


def label_all(call: Call) -> list[Labels]:
    results = []
    for output in call.outputs:
        shape = tuple(output.shape)
        results.append(
            tuple(
                on_axis(call.constraints.new_axis("constant", call.name, d, size), d, len(shape))
                for d, size in enumerate(shape)
                if size > 1
            )
        )
    return results


def _like(call: Call) -> list[Labels]:
    """A tensor with the shape of another one has the same units."""
    return call.all_outputs(call.labels_of(call.inputs[0]))


RULES: RuleTable = {
    **table(
        label_all,
        """zeros ones empty full arange linspace logspace eye rand randn randint randperm new_zeros new_ones
        new_empty new_full scalar_tensor empty_strided new_empty_strided tril_indices triu_indices""",
    ),
    **table(_like, "zeros_like ones_like empty_like full_like rand_like randn_like randint_like"),
}
