"""Bytes of weights and activations of models small enough to count by hand."""

from __future__ import annotations

import torch
from torch import nn

from prunegate.measuring import peak_activation_bytes, weight_bytes


def test_shared_weights_count_once_and_buffers_count() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    model[1].weight = model[0].weight
    assert weight_bytes(model) == 4 * 16 + 4 * (4 * 4) + 8  # one matrix; four vectors; the number of batches
    assert weight_bytes(model.half()) == 2 * 16 + 2 * (4 * 4) + 8


def test_peak_counts_what_is_alive_at_once() -> None:
    x = torch.zeros(256)  # a kilobyte
    chain = nn.Sequential(nn.Sigmoid(), nn.Tanh(), nn.Sigmoid())
    assert peak_activation_bytes(lambda: chain(x)) == 2048  # each reads one tensor and writes another
    assert peak_activation_bytes(lambda: [x + 1, x + 2, x + 3]) == 3072


def test_views_writes_in_place_and_inputs_take_no_memory() -> None:
    x = torch.zeros(16, 16)
    assert peak_activation_bytes(lambda: x.view(-1)[3:].add_(1).relu_()) == 0
    assert peak_activation_bytes(lambda: (x + 1).t().relu_()) == 1024


def test_a_second_call_counts_the_same() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)).eval()
    x = torch.zeros(2, 3, 10, 10)
    first = peak_activation_bytes(lambda: model(x))
    assert first == 2 * (2 * 8 * 8 * 8 * 4)  # the convolution's and the norm's
    assert peak_activation_bytes(lambda: model(x)) == first
