"""Limits: conditions outside of which it is not proved that a compact model computes the same as the gated one."""

from __future__ import annotations

from dataclasses import dataclass

from prunegate.compaction.fix_ups import FixUps
from prunegate.groups import ExampleInputs, Trace


@dataclass(frozen=True)
class Limit:
    """One condition.

    Attributes:
        module: Path of the module concerned; empty for the whole model.
        what: What holds there, e.g. ``"runs only at the traced sizes"``.
    """

    module: str
    what: str

    def __str__(self) -> str:
        return f"{self.module or 'the model'}: {self.what}"


def limits_of(fix_ups: FixUps, trace: Trace, inputs: ExampleInputs) -> tuple[Limit, ...]:
    """The limits known after `wrap`."""
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs.tensors())
    played = (
        f"runs only on inputs of the sizes that it was traced with ({shapes}; the number of samples is free) and with "
        "the arguments of that run, as it is replayed"
    )
    results = [Limit(path, played) for path in (("",) if fix_ups.graph else fix_ups.replayed)]
    if results and inputs.others:
        results.append(Limit("", "the other_calls that wrap() was given are not served, for the same reason"))
    if inputs.outputs is not None:
        counted = ", ".join(place.lstrip(".") or "the output" for place in inputs.outputs)
        results.append(Limit("", f"only {counted} is preserved; other outputs may be narrower or different"))
    results += [Limit("", f"{what} could not be followed: {why}") for what, why in trace.not_followed]
    results += [Limit(branch.module, str(branch)) for branch in trace.untaken]
    return tuple(results)
