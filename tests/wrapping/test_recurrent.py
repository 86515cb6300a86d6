"""Recurrent layers: what they read is gated, and their hidden units are, in all forms that torch has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import prunegate
from tests.wrapping.exactness import assert_exact, noise, units

HIDDEN, PROJECTED = 12, 8


class Reader(nn.Module):
    """A convolution over time, a recurrent layer that reads it, and a layer that reads its output."""

    def __init__(self, layer: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        directions = 2 if options.get("bidirectional") else 1
        self.conv = nn.Conv1d(5, 14, 3, padding=1)
        self.cell = layer(14, HIDDEN, batch_first=True, **options)
        self.head = nn.Linear(directions * options.get("proj_size", HIDDEN), 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.cell(torch.relu(self.conv(x)).transpose(1, 2))[0])
        return y


class LastState(Reader):
    """Reads the last state instead of all outputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, state = self.cell(torch.relu(self.conv(x)).transpose(1, 2))
        hidden, *cells = state if isinstance(state, tuple) else (state,)
        y: torch.Tensor = self.head(hidden[-1])
        return y + sum(c[-1].mean(1, keepdim=True) for c in cells)


class Packed(Reader):
    """Reads a packed sequence and unpacks what comes out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.relu(self.conv(x)).transpose(1, 2)
        lengths = torch.full((len(z),), z.shape[1])
        out, _ = self.cell(pack_padded_sequence(z, lengths, batch_first=True))
        y: torch.Tensor = self.head(pad_packed_sequence(out, batch_first=True)[0])
        return y


SIGNAL, SIGNALS = noise(2, 5, 13), (noise(3, 5, 13), noise(2, 5, 9))
READERS: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "lstm": (lambda: Reader(nn.LSTM), {}),
    "gru": (lambda: Reader(nn.GRU), {}),
    "tanh": (lambda: Reader(nn.RNN), {}),
    "relu": (lambda: Reader(nn.RNN, nonlinearity="relu"), {}),
    "without bias": (lambda: Reader(nn.LSTM, bias=False), {}),
    "both directions": (lambda: Reader(nn.LSTM, bidirectional=True), {}),
    "stacked": (lambda: Reader(nn.GRU, num_layers=3), {}),
    "stacked in both directions": (lambda: Reader(nn.LSTM, num_layers=2, bidirectional=True), {}),
    "projected": (lambda: Reader(nn.LSTM, proj_size=PROJECTED), {"cell.weight_hr_l0": PROJECTED}),
    "projected, stacked, both directions": (
        lambda: Reader(nn.LSTM, proj_size=PROJECTED, num_layers=2, bidirectional=True),
        {"cell.weight_hr_l0": PROJECTED},
    ),
    "last state": (lambda: LastState(nn.LSTM), {}),
    "last state of several layers": (lambda: LastState(nn.GRU, num_layers=2), {}),
    "packed": (lambda: Packed(nn.LSTM), {}),
}


@pytest.mark.parametrize("name", READERS)
def test_inputs_and_hidden_units_go_without_loss(name: str) -> None:
    make, more = READERS[name]
    gated = assert_exact(make(), SIGNAL, SIGNALS)
    assert units(gated) == {"conv": 14, **(more or {"cell.weight_ih_l0": HIDDEN})}


def test_a_projection_stays_narrower_than_what_it_projects() -> None:
    """Torch tells a projected layer by that, so its hidden units stay."""
    gated = assert_exact(Reader(nn.LSTM, proj_size=HIDDEN - 1), SIGNAL)
    told = {p.name: p for p in gated.pinned}["cell.weight_ih_l0"]
    assert "have to be more than the projections" in told.reason


class Translator(nn.Module):
    """The state of one layer starts another."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 10)
        self.encoder, self.decoder, self.head = nn.GRU(10, HIDDEN), nn.GRU(10, HIDDEN), nn.Linear(HIDDEN, 20)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens).transpose(0, 1)
        y: torch.Tensor = self.head(self.decoder(x, self.encoder(x)[1])[0])
        return y


class LearnedState(nn.Module):
    """A parameter is the first state."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.start = nn.GRU(6, HIDDEN), nn.Parameter(torch.randn(1, 1, HIDDEN))
        self.head = nn.Linear(HIDDEN, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.cell(x, self.start.expand(1, x.shape[1], HIDDEN).contiguous())[0])
        return y


class StartedByOneLayer(nn.Module):
    """One layer makes the states of both layers and directions, or of an LSTM's two kinds."""

    def __init__(self, kind: type[nn.RNNBase], layers: int) -> None:
        super().__init__()
        self.kind, self.layers = kind, layers
        self.cell: Any = kind(6, HIDDEN, layers, batch_first=True)
        self.start, self.head = nn.Linear(6, layers * HIDDEN), nn.Linear(HIDDEN, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = self.start(x[:, 0]).view(-1, self.layers, HIDDEN).transpose(0, 1).contiguous()
        y: torch.Tensor = self.head(self.cell(x, (state, state.tanh()) if self.kind is nn.LSTM else state)[0])
        return y


class Steps(nn.Module):
    """A cell, called step by step."""

    def __init__(self, cell: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.stem, self.cell, self.head = nn.Linear(6, 9), cell(9, HIDDEN), nn.Linear(HIDDEN, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state, found = None, []
        for step in x:
            state = self.cell(self.stem(step), state)
            found.append(self.head(state[0] if isinstance(state, tuple) else state))
        return torch.stack(found)


def test_a_state_that_the_model_makes_is_cut_with_the_units_that_it_starts() -> None:
    tokens = [torch.randint(20, size, generator=torch.Generator().manual_seed(0)) for size in ((2, 7), (3, 9))]
    gated = assert_exact(Translator(), tokens[0], (tokens[1],))
    assert units(gated) == {"embed": 10, "encoder.weight_ih_l0": HIDDEN}
    assert units(assert_exact(LearnedState(), noise(7, 2, 6), (noise(7, 3, 6),))) == {"cell.weight_ih_l0": HIDDEN}


@pytest.mark.parametrize(("kind", "layers"), [(nn.GRU, 2), (nn.LSTM, 3), (nn.RNN, 1)])
def test_states_that_one_layer_makes_for_several_are_cut_alike(kind: type[nn.RNNBase], layers: int) -> None:
    gated = assert_exact(StartedByOneLayer(kind, layers), noise(2, 7, 6), (noise(3, 9, 6),))
    assert units(gated) == {"cell.weight_ih_l0": HIDDEN}


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_cells_are_cut_as_layers_are(cell: type[nn.RNNCellBase]) -> None:
    gated = assert_exact(Steps(cell), noise(7, 2, 6), (noise(7, 3, 6),))
    assert units(gated) == {"stem": 9, "cell.weight_ih": HIDDEN}


def test_a_state_from_outside_keeps_the_hidden_units_and_is_told() -> None:
    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.cell, self.head = nn.Linear(6, 9), nn.LSTM(9, HIDDEN), nn.Linear(HIDDEN, 3)

        def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> Any:
            y, (h, c) = self.cell(self.stem(x), (h, c))
            return self.head(y), h, c

    gated = assert_exact(Outside(), (noise(7, 2, 6), noise(1, 2, HIDDEN), noise(1, 2, HIDDEN)))
    assert units(gated) == {"stem": 9}
    told = {p.name: p for p in gated.pinned}["cell.weight_ih_l0"]
    assert "cell (LSTM)" in told.reason
    assert "its state comes from outside" in told.reason
    assert "start from zeros" in told.advice


def test_multiply_accumulates_of_a_recurrent_layer_are_its_own() -> None:
    gated = prunegate.wrap(Reader(nn.LSTM), SIGNAL.float())
    dense = gated.dense_cost("macs")
    steps, rows = 13, 4 * HIDDEN
    assert dense == steps * (5 * 14 * 3 + rows * 14 + rows * HIDDEN + HIDDEN * 4)
