"""Which of a model's outputs count, given by their places in the returned object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from prunegate.errors import TraceError
from prunegate.groups import ExampleInputs, FakeTensors
from prunegate.groups.following.outputs import named_tensors, names_of_state, tensors_in
from prunegate.groups.torch_workarounds.fake_tensors import KINDS


def places_that_count(
    model: nn.Module, inputs: ExampleInputs, chosen: Callable[[Any], Any] | str | Sequence[str]
) -> tuple[str, ...]:
    """The places of the outputs that the user names or picks with a function.

    Raises:
        TraceError: The model does not run, the choice matches nothing, or it creates tensors instead of picking them.
    """
    returned = _returned(model, inputs)
    named = dict(named_tensors(returned, names_of_state(model)))
    known = ", ".join(place or "the output itself" for place in named)
    if callable(chosen):
        try:
            picked = tensors_in(chosen(returned))
        except Exception as error:  # a foreign function may raise anything
            raise TraceError(
                f"outputs: the function failed on the model's output with {type(error).__name__}: {error}. "
                f"The outputs are: {known}."
            ) from error
        places = [place for place, tensor in named.items() if any(tensor is one for one in picked)]
        if len(places) != len(picked):
            raise TraceError(
                f"outputs: the function returns new tensors. It has to return tensors of the model's output as they "
                f"are. The outputs are: {known}."
            )
    else:
        names = (chosen,) if isinstance(chosen, str) or not isinstance(chosen, Sequence) else tuple(chosen)
        if not all(isinstance(name, str) for name in names):
            raise TraceError(
                f"outputs: found {chosen!r}, expected names such as 'logits' or '[0]', or a function such as "
                f"lambda out: out[0]. The outputs are: {known}."
            )
        missing = [name for name in names if not any(_is_part(place, name) for place in named)]
        if missing:
            raise TraceError(f"outputs: the model has no output {missing[0]!r}. The outputs are: {known}.")
        places = [place for place in named if any(_is_part(place, name) for name in names)]
    if not places:
        raise TraceError(f"outputs: nothing was chosen, expected at least one tensor. The outputs are: {known}.")
    return tuple(places)


def _is_part(place: str, name: str) -> bool:
    """Whether a place such as ``.states[0]`` or ``['states'][0]`` is inside the part ``name``."""
    plain = place.replace("['", ".").replace("']", "").removeprefix(".")
    return plain == name or place == name or (plain.startswith(name) and plain[len(name)] in ".[")


def _returned(model: nn.Module, inputs: ExampleInputs) -> Any:
    """The model's output on tensors without data, or on real ones if it needs them."""
    reason: Exception | None = None
    for kind in KINDS:
        fake_tensors = FakeTensors(kind)
        given = inputs.map(fake_tensors.of)
        try:
            with fake_tensors.running(), torch.no_grad():
                return fake_tensors.of_model(model).eval()(*given.args, **given.kwargs)
        except Exception as error:  # a foreign forward may raise anything
            reason = error
    raise TraceError(
        f"outputs: the model does not run on the example inputs: {type(reason).__name__}: {reason}. Pass "
        "example_inputs with which model(...) works."
    ) from reason
