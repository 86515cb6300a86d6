"""Finding channel groups by running the model."""

from __future__ import annotations

from prunegate.groups.analysis import Analysis, LoopNest, MaskedCall
from prunegate.groups.channel_group import ChannelGroup, Member, PinnedGroup
from prunegate.groups.constraints import Pin
from prunegate.groups.copies import copy_with, in_place_of, on_meta, the_same
from prunegate.groups.inputs import ExampleInputs
from prunegate.groups.rules import Call, register_rule
from prunegate.groups.stand_ins import StandIns
from prunegate.groups.tape import Operation, Record, Source, Span, Tape, Value, map_tensors, map_values, values_in
from prunegate.groups.trace import Trace
from prunegate.groups.watch import CallAddress, function_name

__all__ = [
    "Analysis",
    "Call",
    "CallAddress",
    "ChannelGroup",
    "ExampleInputs",
    "LoopNest",
    "MaskedCall",
    "Member",
    "Operation",
    "Pin",
    "PinnedGroup",
    "Record",
    "Source",
    "Span",
    "StandIns",
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
