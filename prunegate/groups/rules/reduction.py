"""Operations that look at all entries along a dimension."""

from __future__ import annotations

import math
from collections.abc import Iterable

from prunegate.groups.labels import Labels, pick, varying
from prunegate.groups.partition import Ids
from prunegate.groups.rules.call import Call, RuleTable, table
from prunegate.groups.rules.pointwise import pointwise

_MASKED = frozenset("mean sum amax var var_mean std std_mean linalg_vector_norm norm".split())


def _reduce(call: Call) -> list[Labels]:
    if len(call.inputs) > 1:  # min, max and the like of two tensors
        return pointwise(call)
    x = call.inputs[0]
    dims = _dims(call, x.dim())
    keepdim = bool(call.arguments.get("keepdim", False))
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


def _clear_of(call: Call, labels: Iterable[Ids], dims: set[int]) -> list[Ids]:
    """The labels, none of them varying on ``dims`` any more.

    A unit that lies only along ``dims`` is masked where the function allows it, else pinned: leaving it out
    changes the result. A unit that lies along others as well (a head, reduced over its width) is kept whole.
    """
    result = []
    for label in labels:
        inside = [d for d in varying(label) if d in dims]
        if inside and len(inside) == len(varying(label)):
            if call.name in _MASKED and call.mask(label):
                _need_enough(call, label, dims)
                continue
            call.pin(label, f"{call.name} is taken over these channels")
            continue
        for dim in inside:
            label = call.constraints.tie_along(label, dim)
        result.append(label)
    return result


def _need_enough(call: Call, label: Ids, dims: set[int]) -> None:
    """A variance divides by the number of entries less a correction, so more than that have to stay."""
    if not call.name.startswith(("var", "std")):
        return
    correction = call.arguments.get("correction")
    if correction is None:
        correction = int(call.arguments.get("unbiased", True))
    shape = call.shape_of(call.inputs[0])
    beside = math.prod(shape[dim] for dim in dims if label.shape[dim] == 1)
    call.constraints.needed.append((label, int(correction // beside) + 1))


def _along(call: Call) -> list[Labels]:
    """Softmax, cumulative sums, sorting: the shape stays, entries along one dimension are mixed."""
    x = call.inputs[0]
    dim = call.dim("dim", x.dim())
    beside: list[Ids] = []
    along_it: list[Ids] = []
    for label in call.labels_of(x):
        masked = "softmax" in call.name and varying(label) == (dim,) and call.mask(label)
        (along_it if masked else beside).append(label)
    return call.all_outputs((*along_it, *call.keep(_clear_of(call, beside, {dim}))))


RULES: RuleTable = {
    **table(
        _reduce,
        """mean sum amax amin max min var var_mean std std_mean linalg_vector_norm norm logsumexp prod any all
        argmax argmin median""",
    ),
    **table(
        _along,
        "_softmax _safe_softmax _log_softmax softmax log_softmax cumsum cumprod sort topk logcumsumexp",
    ),
}
