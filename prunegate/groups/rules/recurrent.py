"""Torch's recurrent layers, each as a whole, as their kernels copy the weights and run step by step."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import torch

from prunegate.groups.rules.call import Call
from prunegate.groups.rules.contraction import column
from prunegate.groups.solving.constraints import Contraction
from prunegate.groups.solving.labels import Labels, align, on_axis, varying
from prunegate.groups.solving.partition import Ids

_STATE = "its state comes from outside of the model, or from channels that cannot be removed"


def recurrent(call: Call) -> list[Labels]:
    """`torch.nn.RNN`, `LSTM` and `GRU`, with any number of layers, in both directions, with projections.

    A hidden unit consists of its row in every block of rows (one per inner gate of the layer) of the weights and
    biases, the column of the recurrent weight that reads it, and the columns that read the layer's output. All layers
    and directions of a module have one hidden size, so unit k is removed from all of them. The initial states are zero
    unless the caller passes some. Projected hidden units are kept, because torch's kernels recognise a projection by
    its smaller width.
    """
    x, *states = _flat(call, "input"), *_flat_states(call)
    suffixes = sorted({name.removeprefix("weight_ih_l") for name in call.arguments if name.startswith("weight_ih_l")})
    directions = 2 if any(suffix.endswith("_reverse") for suffix in suffixes) else 1
    hidden = _hidden_units(call, suffixes)
    projected = _projected_units(call, suffixes)
    if projected is not None:
        call.pin(hidden, "hidden units of a projected layer have to be more than the projections")
    recurring = hidden if projected is None else projected  # the input of a step from the previous one
    positions = math.prod(call.shape_of(x)[:-1])
    for suffix in suffixes:
        first = int(re.match(r"\d+", suffix).group()) == 0  # type: ignore[union-attr]
        for name, read in (
            ("weight_ih_l", None if first else np.tile(recurring, directions)),
            ("weight_hh_l", recurring),
        ):
            weight = call.tensor(name + suffix)
            own = _of(call, weight, 1)
            if read is not None:
                call.read(weight, own, read, _STATE)
            _note_cost(call, weight, positions)
        if projected is not None:
            _note_cost(call, call.tensor("weight_hr_l" + suffix), positions)
    _read_input(call, x, [suffix for suffix in suffixes if re.match(r"0(_|$)", suffix)])
    for place, state in enumerate(states):
        _take_state(call, state, recurring if place == 0 else hidden)
    return _outputs(call, np.tile(recurring, directions), recurring, hidden)


def _of(call: Call, tensor: torch.Tensor, axis: int) -> Ids | None:
    return column(call.labels_of(tensor), axis, call.shape_of(tensor)[axis])


def _flat(call: Call, name: str) -> torch.Tensor:
    """The input tensor, or the data of a packed one."""
    value = call[name]
    return value if isinstance(value, torch.Tensor) else value.data


def _flat_states(call: Call) -> Sequence[torch.Tensor]:
    given = call.arguments.get("hx")
    return () if given is None else (given,) if isinstance(given, torch.Tensor) else tuple(given)


def _hidden_units(call: Call, suffixes: Sequence[str]) -> Ids:
    """The ids of the hidden units, tied across all rows of each unit."""
    hidden: Ids | None = None
    for suffix in suffixes:
        projection = call.arguments.get("weight_hr_l" + suffix)
        width = call.shape_of(call.tensor("weight_hh_l" + suffix) if projection is None else projection)[1]
        for name in ("weight_ih_l", "weight_hh_l", "bias_ih_l", "bias_hh_l"):
            tensor = call.arguments.get(name + suffix)
            rows = None if tensor is None else _of(call, tensor, 0)
            if rows is None:  # a single row, or no bias
                continue
            units = call.constraints.tie_along(rows.reshape(-1, width), 0).reshape(-1)
            call.constraints.produced.append(units)
            hidden = units if hidden is None else hidden
            call.constraints.tie(hidden, units)
        columns = None if projection is None else _of(call, projection, 1)
        if projection is not None and columns is not None and hidden is not None:
            call.constraints.tie(hidden, columns)
            call.consume(projection, columns)
    return hidden if hidden is not None else call.constraints.pinned_ids(1, call.reason("a single hidden unit"))


def _projected_units(call: Call, suffixes: Sequence[str]) -> Ids | None:
    """The ids of an LSTM's projected units, if it has a projection."""
    projected: Ids | None = None
    for suffix in suffixes:
        projection = call.arguments.get("weight_hr_l" + suffix)
        rows = None if projection is None else _of(call, projection, 0)
        if projection is not None and rows is None:
            rows = call.constraints.pinned_ids(1, call.reason("a single projected unit"))
        if rows is not None:
            call.constraints.produced.append(rows)
            projected = rows if projected is None else projected
            call.constraints.tie(projected, rows)
    return projected


def _read_input(call: Call, x: torch.Tensor, suffixes: Sequence[str]) -> None:
    """Tie the input's channels to the columns that read them."""
    last = x.dim() - 1
    channels = None
    for label in call.clear_of(call.labels_of(x), range(last), "a recurrent layer mixes these positions"):
        channels = label.reshape(-1) if varying(label) == (last,) else channels
    for suffix in suffixes:
        weight = call.tensor("weight_ih_l" + suffix)
        call.read(weight, _of(call, weight, 1), channels, "its input channels cannot be removed")


def _take_state(call: Call, state: torch.Tensor, units: Ids) -> None:
    """Tie the initial states to the hidden units, which are the same in all layers."""
    last = state.dim() - 1
    started = None
    for label in call.labels_of(state):
        if varying(label) in ((last,), (0, last)):
            started = call.constraints.tie_along(label.reshape(-1, label.shape[last]), 0).reshape(-1)
        else:
            call.pin(label, _STATE)
    if started is None:
        call.pin(units, _STATE)
    else:
        call.constraints.tie(started, units)


def _outputs(call: Call, output: Ids, last_output: Ids, last_state: Ids) -> list[Labels]:
    """Labels of the output of every step, and of the last states; the metadata of packed sequences has none."""
    results: list[Labels] = []
    states = iter((last_output, last_state))
    for number, tensor in enumerate(call.outputs):
        if not tensor.is_floating_point():
            results.append(())
            continue
        ids = output if number == 0 else next(states)
        results.append((on_axis(ids, tensor.dim() - 1, tensor.dim()),) if ids.size > 1 else ())
    return results


def _note_cost(call: Call, weight: torch.Tensor, positions: int) -> None:
    shape = call.shape_of(weight)
    labels = tuple(align(label, 3) for label in call.labels_of(weight))
    call.constraints.contractions.append(Contraction(call.module, call.name, (positions, *shape), labels))
