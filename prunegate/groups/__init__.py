"""Finding channel groups by running the model."""

from __future__ import annotations

from prunegate.groups.analysis import Analysis, LoopNest
from prunegate.groups.channel_group import ChannelGroup, Member, PinnedGroup
from prunegate.groups.constraints import Pin
from prunegate.groups.inputs import ExampleInputs
from prunegate.groups.trace import Trace, copy_with, fake, shadow

__all__ = [
    "Analysis",
    "ChannelGroup",
    "ExampleInputs",
    "LoopNest",
    "Member",
    "Pin",
    "PinnedGroup",
    "Trace",
    "copy_with",
    "fake",
    "shadow",
]
