"""Which of a model's outputs count, given by their places in the returned object."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunegate.errors import TraceError
from prunegate.groups import ExampleInputs, FakeTensors
from prunegate.groups.following.outputs import named_tensors, names_of_state, tensors_in
from prunegate.groups.torch_workarounds.fake_tensors import KINDS

logger = logging.getLogger(__name__)


def places_that_count(
    model: nn.Module, inputs: ExampleInputs, chosen: Callable[[Any], Any] | str | Sequence[str]
) -> tuple[str, ...]:
    """The places of the outputs that the user names or picks with a function.

    A model may return an object of another form in training mode, so the choice is made there as well. If it finds
    nothing there, all that training returns counts (see `prunegate.groups.following.outputs.tensors_in`).

    Raises:
        TraceError: The model does not run, the choice matches nothing, or it creates tensors instead of picking them.
    """
    state = names_of_state(model)
    returned = [_returned(model, inputs)]
    try:
        returned.append(_returned(model, inputs, training=True))
    except TraceError as reason:
        logger.info("what training mode returns is not known: %s", reason)
    named = [dict(named_tensors(one, state)) for one in returned]
    known = ", ".join(place or "the output itself" for place in named[0])
    if callable(chosen):
        places = _picked(chosen, returned[0], named[0], known)
        try:
            places += _picked(chosen, returned[-1], named[-1], known)
        except TraceError as reason:
            logger.info("the choice of outputs fails in training mode: %s", reason)
    else:
        names = (chosen,) if isinstance(chosen, str) or not isinstance(chosen, Sequence) else tuple(chosen)
        if not all(isinstance(name, str) for name in names):
            raise TraceError(
                f"outputs: found {chosen!r}, expected names such as 'logits' or '[0]', or a function such as "
                f"lambda out: out[0]. The outputs are: {known}."
            )
        all_places = list(dict.fromkeys(place for one in named for place in one))
        missing = [name for name in names if not any(_is_part(place, name) for place in all_places)]
        if missing:
            raise TraceError(f"outputs: the model has no output {missing[0]!r}. The outputs are: {known}.")
        places = [place for place in all_places if any(_is_part(place, name) for name in names)]
    if not any(place in named[0] for place in places):
        raise TraceError(f"outputs: nothing was chosen, expected at least one tensor. The outputs are: {known}.")
    return tuple(dict.fromkeys(places))


def _picked(chosen: Callable[[Any], Any], returned: Any, named: Mapping[str, torch.Tensor], known: str) -> list[str]:
    """The places of the tensors that a function picks out of a returned object."""
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
    return places


def _is_part(place: str, name: str) -> bool:
    """Whether a place such as ``.states[0]`` or ``['states'][0]`` is inside the part ``name``."""
    plain = place.replace("['", ".").replace("']", "").removeprefix(".")
    return plain == name or place == name or (plain.startswith(name) and plain[len(name)] in ".[")


def _returned(model: nn.Module, inputs: ExampleInputs, training: bool = False) -> Any:
    """The model's output on tensors without data, or on real ones if it needs them."""
    reason: Exception | None = None
    for kind in KINDS:
        fake_tensors = FakeTensors(kind)
        given = inputs.map(fake_tensors.of)
        try:
            with fake_tensors.running(), torch.no_grad():
                return fake_tensors.of_model(model).train(training)(*given.args, **given.kwargs)
        except Exception as error:  # a foreign forward may raise anything
            reason = error
    raise TraceError(
        f"outputs: the model does not run on the example inputs: {type(reason).__name__}: {reason}. Pass "
        "example_inputs with which model(...) works."
    ) from reason
