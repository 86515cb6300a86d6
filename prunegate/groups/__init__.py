"""Finding channel groups by running the model."""

from __future__ import annotations

from prunegate.groups.analysis import Analysis, LoopNest, MaskedCall
from prunegate.groups.channel_group import ChannelGroup, Member, PinnedGroup
from prunegate.groups.following.inputs import ExampleInputs
from prunegate.groups.following.maskable import function_name
from prunegate.groups.following.tape import (
    Operation,
    Record,
    Source,
    Span,
    Tape,
    Value,
    map_tensors,
    map_values,
    values_in,
)
from prunegate.groups.following.trace import Trace
from prunegate.groups.following.watch import CallAddress
from prunegate.groups.rules import Call, register_rule
from prunegate.groups.solving.constraints import Pin
from prunegate.groups.torch_workarounds.copies import copy_with, in_place_of, on_meta, the_same
from prunegate.groups.torch_workarounds.fake_tensors import FakeTensors

__all__ = [
    "Analysis",
    "Call",
    "CallAddress",
    "ChannelGroup",
    "ExampleInputs",
    "FakeTensors",
    "LoopNest",
    "MaskedCall",
    "Member",
    "Operation",
    "Pin",
    "PinnedGroup",
    "Record",
    "Source",
    "Span",
    "Tape",
    "Trace",
    "Value",
    "copy_with",
    "function_name",
    "in_place_of",
    "map_tensors",
    "map_values",
    "on_meta",
    "register_rule",
    "the_same",
    "values_in",
]
