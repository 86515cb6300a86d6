"""Operations over all entries along a dimension."""

from __future__ import annotations

import math
from collections.abc import Iterable

from prunegate.groups.rules.call import Call, RuleTable, table
from prunegate.groups.rules.pointwise import pointwise
from prunegate.groups.rules.within import choose_within, head_ids
from prunegate.groups.solving.labels import Labels, pick, varying
from prunegate.groups.solving.partition import Ids

_MASKED = frozenset(
    """mean sum amax amin max min aminmax logsumexp prod var var_mean std std_mean linalg_vector_norm norm""".split()
)
# The second output of these is the index of an entry along the dimensions.
_LOCATING = frozenset("max min".split())


def _reduce(call: Call) -> list[Labels]:
    if len(call.inputs) > 1:  # such as min or max of two tensors
        return pointwise(call)
    x = call.inputs[0]
    dims = _dims(call, x.dim())
    keepdim = bool(call.arguments.get("keepdim", False))
    if call.name in _LOCATING and len(call.outputs) > 1:
        inside = [label for label in call.labels_of(x) if label.size > 1 and dims.issuperset(varying(label))]
        call.forbid_use(call.outputs[1], inside, f"where {call.name} found its entry among these channels is used")
    result = []
    for label in _clear_of(call, call.labels_of(x), dims):
        for dim in sorted(dims, reverse=True):
            label = label if keepdim else pick(label, 0, dim)
        result.append(label)
    return call.all_outputs(call.keep(result))


def _dims(call: Call, ndim: int) -> set[int]:
    given = call.arguments.get("dim")
    if given is None or given == []:
        return set(range(ndim))
    chosen = [given] if isinstance(given, int) else given
    return {d % max(ndim, 1) for d in chosen}


def _clear_of(call: Call, labels: Iterable[Ids], dims: set[int]) -> Labels:
    """The labels, which no longer vary on ``dims``.

    Removing a unit that lies only along ``dims`` changes the result, so it is masked if the function allows it.
    """
    result = []
    for label in labels:
        if label.size > 1 and dims.issuperset(varying(label)) and call.name in _MASKED and call.mask(label):
            _need_enough(call, label, dims)
            call.constraints.consumed.append(("", label.reshape(-1)))
        else:
            result.append(_heads_of(call, label, dims))
    return call.clear_of(result, dims, f"{call.name} is taken over these channels")


def _heads_of(call: Call, label: Ids, dims: set[int]) -> Ids:
    """For a label over heads and a reduced width, the label of the heads, whose dimensions can also be removed."""
    inside = [d for d in varying(label) if d in dims]
    if call.name not in _MASKED or len(inside) != 1 or len(varying(label)) < 2 or call.name.startswith(("var", "std")):
        return label
    heads = head_ids(call, label, inside[0])
    choose_within(call, label, inside[0], lambda places: call.mask(places, repeated=True), heads=heads)
    return heads


def _need_enough(call: Call, label: Ids, dims: set[int]) -> None:
    """A variance divides by the number of entries minus a correction, so more than that have to be kept."""
    if not call.name.startswith(("var", "std")):
        return
    correction = call.arguments.get("correction")
    if correction is None:
        correction = int(call.arguments.get("unbiased", True))
    shape = call.shape_of(call.inputs[0])
    beside = math.prod(shape[dim] for dim in dims if label.shape[dim] == 1)
    call.constraints.needed.append((label, int(correction // beside) + 1))


def _along(call: Call) -> list[Labels]:
    """Softmax, cumulative sums, sorting: the shape is unchanged, entries along one dimension are mixed."""
    x = call.inputs[0]
    dim = call.dim("dim", x.dim())
    beside: list[Ids] = []
    along_it: list[Ids] = []
    for label in call.labels_of(x):
        masked = _is_masked_along(call.name) and varying(label) == (dim,) and call.mask(label)
        (along_it if masked else beside).append(label)
    return call.all_outputs((*along_it, *call.keep(_clear_of(call, beside, {dim}))))


def _is_masked_along(name: str) -> bool:
    return "softmax" in name or name in ("cumsum", "logcumsumexp")


RULES: RuleTable = {
    **table(
        _reduce,
        """mean sum amax amin max min var var_mean std std_mean linalg_vector_norm norm logsumexp aminmax prod any all
        argmax argmin median""",
    ),
    **table(
        _along,
        "_softmax _safe_softmax _log_softmax softmax log_softmax cumsum cumprod sort topk logcumsumexp",
    ),
}
