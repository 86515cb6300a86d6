"""Learnable gates: logits, hard masks drawn with logistic noise, and the sites where they are applied."""

from __future__ import annotations

from prunegate.gates.call_sites import remove_call_sites
from prunegate.gates.estimators import ESTIMATORS, Estimator
from prunegate.gates.gates import Gate, Gates
from prunegate.gates.magnitude import standardised_magnitudes
from prunegate.gates.noise import CounterNoise
from prunegate.gates.recomputation import resume_in_recomputation
from prunegate.gates.relaxation import logistic_noise, soft_mask, straight_through
from prunegate.gates.replay import Replay
from prunegate.gates.running import RunningMode, running_modes, without_dropout
from prunegate.gates.sites import GateSites

__all__ = [
    "ESTIMATORS",
    "CounterNoise",
    "Estimator",
    "Gate",
    "GateSites",
    "Gates",
    "Replay",
    "RunningMode",
    "logistic_noise",
    "remove_call_sites",
    "resume_in_recomputation",
    "running_modes",
    "soft_mask",
    "standardised_magnitudes",
    "straight_through",
    "without_dropout",
]
