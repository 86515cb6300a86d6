"""Function calls with masked arguments, merged if they mask the same units."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from prunegate.groups.analysis import MaskedCall
from prunegate.groups.following.code_places import CodePlace
from prunegate.groups.following.watch import CallAddress
from prunegate.groups.solving.constraints import Constraints
from prunegate.groups.solving.labels import collapse
from prunegate.groups.solving.partition import Ids


def masked_calls(constraints: Constraints, units_of: Ids) -> list[MaskedCall]:
    """The function calls with masked arguments; calls that mask the same units are merged."""
    alike: dict[tuple[str, str, int, tuple[int, ...], bytes], list[CallAddress]] = defaultdict(list)
    units: dict[tuple[str, str, int, tuple[int, ...], bytes], Ids] = {}
    at_code: dict[tuple[str, str, int, CodePlace | None], dict[int, set[Any]]] = defaultdict(lambda: defaultdict(set))
    for masked in constraints.masked:
        result = collapse(units_of[masked.label])
        if (result >= 0).any():
            address = masked.address
            key = (address.module, address.function, masked.place, result.shape, result.tobytes())
            alike[key].append(address)
            units[key] = result
            for code in (address.code, None):
                at_code[address.module, address.function, masked.place, code][address.index].add(key)

    def is_whole(key: tuple[str, str, int, tuple[int, ...], bytes], code: CodePlace | None) -> bool:
        """Whether all calls at a position in the code, or in the module, have this key."""
        calls = at_code[(*key[:3], code)]
        whole = len(calls) >= constraints.totals.get((*key[:2], code), 0)
        return whole and all(keys == {key} for keys in calls.values())

    calls = []
    for key, addresses in alike.items():
        codes = dict.fromkeys(address.code for address in addresses)
        by_code = all(code is not None and is_whole(key, code) for code in codes)
        indices = tuple(sorted({address.index for address in addresses}))
        known = tuple(code for code in codes if code is not None) if by_code else ()
        calls.append(MaskedCall(*key[:3], units[key], indices, known, is_whole(key, None)))
    return calls
